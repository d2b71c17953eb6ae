"""Fails where an #include points against the dependency rule: models <- cpu, gpu <- predictor <- runtime."""

import pathlib
import re
import sys
import tempfile

ALLOWED = {
    "models": {"models"},
    "cpu": {"models", "cpu"},
    "gpu": {"models", "gpu"},
    "predictor": {"models", "cpu", "gpu", "predictor"},
    "runtime": {"models", "cpu", "gpu", "predictor", "runtime"},
}
# Never included by the program, whatever the folder.
OUTSIDE = {"tests", "bench"}
INCLUDE = re.compile(r'^\s*#\s*include\s*["<]([^">]+)[">]')


def violations(root):
    """One line per offending #include, and the number of #includes of our own headers seen."""
    found, seen = [], 0
    for folder, allowed in ALLOWED.items():
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in (".h", ".cc", ".cu", ".cuh", ".in"):
                continue
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                match = INCLUDE.match(line)
                if not match:
                    continue
                first = match[1].split("/")[0]
                seen += first in ALLOWED
                if first in (".", "..") or first in OUTSIDE or (first in ALLOWED and first not in allowed):
                    found.append(f"{path.relative_to(root)}:{number}: {folder} must not include {match[1]}")
    return found, seen


def check_the_check():
    """Plants every kind of offence and some innocence."""
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        planted = {
            "models/a.cc": '#include "cpu/team.h"',
            "cpu/jit/b.h": '  #  include "runtime/engine.h"',
            "gpu/c.cc": "#include <cpu/team.h>",
            "predictor/d.cc": '#include "../models/error.h"',
            "runtime/e.cc": '#include "tests/cpu/guarded.h"',
        }
        fine = {
            "cpu/f.cc": '#include "models/error.h"\n#include <cpuid.h>\n// #include "runtime/engine.h"',
            "runtime/g.cc": '#include "cpu/team.h"\n#include "predictor/heat.h"',
        }
        for name, text in {**planted, **fine}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        found, _ = violations(root)
        assert sorted(line.split(":")[0] for line in found) == sorted(planted), found


def main():
    check_the_check()
    found, seen = violations(pathlib.Path(__file__).resolve().parents[2])
    assert seen > 20, f"only {seen} includes of our own headers were seen"
    print("\n".join(found) or f"{seen} includes, all along the rule")
    return 1 if found else 0


sys.exit(main())
