"""Shows from the machine code that products of few rows store nothing in shared memory while they unpack weights.

usage: sass_test.py CUOBJDUMP OBJECT...     objects with kernels, for any GPUs from sm_80 on

Up to the last tensor core instruction of a DecodeKernel there must be no store to shared memory (STS): weights come there
by asynchronous copies (LDGSTS), which involve no register. What is stored behind it are the partial sums.
"""

import re
import subprocess
import sys

INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d\s+)?([A-Z0-9_.]+)")
# On sm_75 copies are loads and stores, and there are no others either.
SYNCHRONOUS = "sm_75"


def kernels(cuobjdump, path):
    """(architecture, kernel, its instructions) of all kernels in the file."""
    text = subprocess.run([cuobjdump, "--dump-sass", path], check=True, capture_output=True, text=True).stdout
    arch, name, code = None, None, []
    for line in text.splitlines():
        if found := re.search(r"^\s*code for (sm_\w+)", line):
            arch = found[1]
        elif found := re.search(r"Function : (\S+)", line):
            if name:
                yield name[0], name[1], code
            name, code = (arch, found[1]), []
        elif found := INSTRUCTION.search(line):
            code.append(found[1])
    if name:
        yield name[0], name[1], code


def check(code):
    """What is wrong with the instructions of a DecodeKernel, or None."""
    products = [i for i, op in enumerate(code) if op.startswith("IMMA")]
    if not products:
        return "no tensor core instruction"
    inner = code[: products[-1] + 1]
    if not any(op.startswith("LDGSTS") for op in code):
        return "no asynchronous copy"
    stores = [op for op in inner if op.startswith(("STS", "ST."))]
    return f"{len(stores)} shared-memory stores before the last product: {stores[0]}" if stores else None


def main():
    good = ["LDGSTS.E.128", "LDS.128", "LOP3.LUT", "IMMA.16832.S8.S8", "IMMA.16832.S8.S8", "STS"]
    assert check(good) is None
    assert "STS" in check(good[:4] + ["STS.128"] + good[4:]) and check(good[1:]) and check(good[:3])
    cuobjdump, *paths = sys.argv[1:]
    seen, wrong = {}, 0
    for path in paths:
        for arch, name, code in kernels(cuobjdump, path):
            if "DecodeKernel" not in name or arch == SYNCHRONOUS:
                continue
            seen[arch] = seen.get(arch, 0) + 1
            if problem := check(code):
                print(f"{arch} {name}: {problem}")
                wrong += 1
    if not seen:
        sys.exit("no DecodeKernel in any of the objects")
    print("; ".join(f"{arch}: {n} kernels" for arch, n in sorted(seen.items())))
    sys.exit(wrong > 0)


main()
