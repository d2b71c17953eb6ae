"""`profile` as its users meet it.

    python profile_test.py PROGRAM [unittest arguments]
"""
import os
import re
import shutil
import signal
import subprocess
import time
import unittest
import xml.etree.ElementTree

from program import HERE, PROGRAM, VOCABULARY, run

RELU, SILU = HERE / "relu.gguf", HERE / "silu.gguf"
TEXT = HERE / "text.txt"


def words(n, seed=7):
    return "".join(chr(33 + i * i * seed % 89) for i in range(n))


def setUpModule():
    for path, args in ((RELU, ["--activation", "relu", "--sparsity", "0.9"]), (SILU, [])):
        result = run("synth", path, "--shape", "tiny", "--vocabulary", VOCABULARY, *args)
        assert result.returncode == 0, result.stderr
    TEXT.write_text(words(1500))


class Profile(unittest.TestCase):
    def profile(self, model, *args, code=0):
        result = run("profile", model, *args)
        self.assertEqual(result.returncode, code, result.stderr)
        return result.stdout.decode(), result.stderr.decode()

    def test_finds_what_was_planted(self):
        said, _ = self.profile(RELU, "--text", TEXT)
        self.assertTrue(RELU.with_suffix(".heat").exists())
        active = float(re.search(r"fire for a token +([\d.]+) %", said)[1])
        self.assertTrue(7 < active < 13, said)
        hottest = float(re.search(r"make 80 % of activations +([\d.]+) %", said)[1])
        self.assertTrue(20 < hottest < 60, said)  # zipf; all alike would be 80
        again, _ = self.profile(RELU)  # without a text the file is read
        self.assertEqual(said, again)

    def test_report(self):
        page = HERE / "report.html"
        self.profile(SILU, "--text", TEXT, "-o", HERE / "other.heat", "--report", page)
        self.assertEqual(page.read_text().count("<svg"), 1)  # how many fire is what the levels make it
        self.profile(RELU, "--text", TEXT, "-o", HERE / "other.heat", "--report", page)
        content = page.read_text()
        pictures = re.findall(r"<svg.*?</svg>", content, re.DOTALL)
        self.assertEqual(len(pictures), 2)
        for picture in pictures:
            xml.etree.ElementTree.fromstring(picture)
        self.assertNotIn("http", content.replace("http://www.w3.org/2000/svg", ""))
        self.assertFalse((HERE / "other.heat.part").exists())

    def test_a_killed_run_goes_on(self):
        text, heat = HERE / "long.txt", HERE / "killed.heat"
        part = HERE / "killed.heat.part"
        text.write_text(words(12000, 11))
        whole, _ = self.profile(RELU, "--text", text, "-o", HERE / "whole.heat")
        command = [PROGRAM, "profile", RELU, "--text", text, "-o", heat]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while process.poll() is None and not part.exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if not part.exists():
            self.skipTest("this machine is too fast: the run ended before it had anything to save")
        self.assertFalse(heat.exists())
        again, said = self.profile(RELU, "--text", text, "-o", heat)
        self.assertIn("going on where an earlier run stopped", said)
        self.assertEqual(again, whole)
        self.assertFalse(part.exists())

    def test_part_of_another_text_or_damaged_is_not_used(self):
        heat, part = HERE / "fresh.heat", HERE / "fresh.heat.part"
        whole, _ = self.profile(RELU, "--text", TEXT, "-o", heat)
        other = HERE / "other.txt"
        other.write_text(words(900, 3))
        self.profile(RELU, "--text", other, "-o", HERE / "of_other.heat")
        shutil.copy(HERE / "of_other.heat", part)
        again, said = self.profile(RELU, "--text", TEXT, "-o", heat)
        self.assertIn("of another text", said)
        self.assertEqual(again, whole)
        part.write_bytes(heat.read_bytes()[:-5])
        again, said = self.profile(RELU, "--text", TEXT, "-o", heat)
        self.assertIn("damaged", said)
        self.assertEqual(again, whole)

    def test_errors(self):
        heat = HERE / "errors.heat"
        self.profile(RELU, "--text", TEXT, "-o", heat)
        (HERE / "short.txt").write_text("x" * 100)
        os.link(RELU, HERE / "link.gguf")
        for args, complaint in [
            ((SILU, "-o", heat), "another model"),
            ((RELU, "-o", HERE / "missing.heat"), "missing.heat"),
            ((RELU, "-o", TEXT), "not a .heat file"),
            ((RELU, "--text", HERE / "short.txt", "-o", heat), "it needs 256"),
            ((RELU, "--text", HERE / "nothing.txt"), "nothing.txt"),
            ((SILU, "--text", TEXT, "--train-predictors"), "--max-rise 1%"),
            ((RELU, "--text", TEXT, "-o", HERE / "link.gguf"), "overwritten"),
            ((RELU, "--text", TEXT, "-o", TEXT), "overwritten"),
            ((RELU, "-o", heat, "--report", heat), "same file"),
            ((RELU, "--text", TEXT, "-o", HERE / "no_folder" / "x.heat"), "no_folder"),
        ]:
            with self.subTest(args=args):
                _, said = self.profile(*args, code=1)
                self.assertIn(complaint, said)
        for args, complaint in [
            (("--thresholds", "0.4"), "--evaluate need --text"),
            (("--train-predictors",), "--evaluate need --text"),
            (("--text", TEXT, "--recall", "0.9"), "--recall belongs to"),
            (("--text", TEXT, "--evaluate", "--train-predictors"), "--evaluate says"),
            (("--text", TEXT, "--thresholds", "0.4,,0.5"), "'' is not a share"),
            (("--text", TEXT, "--max-rise", "-1"), "'-1' is not a percentage"),
            (("--text", TEXT, "--eval", TEXT), "--eval belongs to"),
        ]:
            with self.subTest(args=args):
                _, said = self.profile(RELU, *args, code=2)
                self.assertIn(complaint, said)
        before = heat.read_bytes()
        for i in range(0, len(before), len(before) // 7):
            heat.write_bytes(before[:i] + bytes([before[i] ^ 4]) + before[i + 1:])
            _, said = self.profile(RELU, "-o", heat, code=1)
            self.assertIn("damaged", said)


if __name__ == "__main__":
    unittest.main()
