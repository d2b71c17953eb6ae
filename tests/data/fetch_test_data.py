#!/usr/bin/env python3
"""Downloads what tests want but the repository does not hold, into ${XDG_CACHE_HOME:-~/.cache}/thermocline/test-data/:
two vocabularies of llama.cpp with their expected tokens, from the source package llama-cpp-python==0.3.36 (MIT, 73 MB,
downloaded once).

    .venv/bin/python tests/data/fetch_test_data.py       needs pip; does nothing when all is there and right

Tests that miss these files say SKIPPED.
"""
import hashlib
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile

REQUIREMENT = "llama-cpp-python==0.3.36"
PACKAGE_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
FOLDER_IN_PACKAGE = "vendor/llama.cpp/models"
FILES = {
    "ggml-vocab-gpt-2.gguf": "cedc56ca6e2e89f63e781696d1fd76b4b1d49e6720dee86463e915f6e90016ac",
    "ggml-vocab-gpt-2.gguf.inp": "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
    "ggml-vocab-gpt-2.gguf.out": "48e8c4cb3ad5c37915b225f872222567c1c4dd4d66951aa53460c8d152ff6d60",
    "ggml-vocab-llama-spm.gguf": "16c3724582d59aa8bf84711894e833f916ee46a31d80e21312759c48bf8d0e69",
    "ggml-vocab-llama-spm.gguf.inp": "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
    "ggml-vocab-llama-spm.gguf.out": "ad6905c925c49c022974fe67e030382e8a4f56eb4489a0b9481dcedb1ec73b29",
}


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def is_right(path, sha256):
    return path.is_file() and sha256_of(path) == sha256


def main():
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    target = cache / "thermocline" / "test-data"
    missing = {name: sha256 for name, sha256 in FILES.items() if not is_right(target / name, sha256)}
    if not missing:
        return
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target) as temporary:
        temporary = pathlib.Path(temporary)
        requirements = temporary / "requirements.txt"
        requirements.write_text(f"{REQUIREMENT} --hash=sha256:{PACKAGE_SHA256}\n")
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                        "--no-binary=llama-cpp-python", "--require-hashes", "-r", requirements, "-d", temporary],
                       check=True, stdout=sys.stderr)
        (package,) = temporary.glob("*.tar.gz")
        with tarfile.open(package) as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                if name in missing and folder.endswith(FOLDER_IN_PACKAGE):
                    (temporary / name).write_bytes(archive.extractfile(member).read())
        for name, sha256 in missing.items():
            if not is_right(temporary / name, sha256):
                sys.exit(f"fetch_test_data: {name} is missing from {REQUIREMENT} or is not the file that was pinned")
            os.replace(temporary / name, target / name)
    print(f"fetch_test_data: {', '.join(missing)} in {target}", file=sys.stderr)


if __name__ == "__main__":
    main()
