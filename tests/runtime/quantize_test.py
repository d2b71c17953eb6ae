"""Quantize: what it writes still speaks, and what was there stays when it fails.

    python quantize_test.py PROGRAM [unittest arguments]
"""
import resource
import signal
import subprocess
import unittest

from program import HERE, PARIS, VOCABULARY, run


class Quantize(unittest.TestCase):
    def test_types(self):
        """Whole models, so that a wrong nibble would change what is said."""
        folder = HERE / "quantized"
        folder.mkdir()
        for kind, embedding, matrix in (("Q8_0", "Q8_0", "Q8_0"), ("q4_0", "Q5_0", "Q4_0"), ("iq4_nl", "Q5_0", "IQ4_NL"),
                                        ("Q4_K", "Q5_1", "Q5_0")):
            out = folder / f"{kind}.gguf"
            result = run("quantize", PARIS, out, "--type", kind)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertRegex(result.stdout.decode(), rf"{kind}\.gguf: [\d.]+ kB, from 2\.0 MB\n$")
            said = run("chat", out, "-p", "Capital?", "--temp", "0")
            self.assertEqual(said.stdout, b"Paris.\n", said.stderr)
            listed = run("inspect", out).stdout.decode()
            self.assertRegex(listed, rf"token_embd.weight +{embedding} +288 x 259")
            self.assertRegex(listed, rf"blk.0.attn_q.weight +{matrix} +288 x 288")
            self.assertRegex(listed, "output_norm.weight +F32 +288")
            self.assertRegex(listed, "general.quantization_version +2")
        self.assertIn(b"288 weights, which blocks of Q4_K do not divide, become Q5_0", result.stderr)
        pure = run("quantize", PARIS, folder / "pure.gguf", "--type", "Q4_0", "--pure")
        self.assertNotIn(b"wider", pure.stderr)
        self.assertRegex(run("inspect", folder / "pure.gguf").stdout.decode(), "token_embd.weight +Q4_0 +288 x 259")
        again = run("quantize", folder / "Q8_0.gguf", folder / "again.gguf", "--type", "Q8_0")
        self.assertEqual((again.returncode, again.stdout), (1, b""))
        self.assertIn(b"nothing to do", again.stderr)

    def test_with_a_text(self):
        text, short, out = HERE / "digits.txt", HERE / "short.txt", HERE / "learned.gguf"
        text.write_text("0123456789" * 120)
        short.write_text("0123456789" * 90)
        result = run("quantize", PARIS, out, "--type", "Q4_0", "--text", text)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(run("chat", out, "-p", "Capital?", "--temp", "0").stdout, b"Paris.\n")
        # Zeros and ones are the same in 4 bits: nothing is lost.
        result = run("quantize", PARIS, out, "--auto", "--text", text, "--max-loss", "0.5%")
        self.assertEqual(result.returncode, 0, result.stderr)
        table = result.stdout.decode()
        self.assertIn("learned from 600 tokens, judged by 255 unseen predictions", table)
        for recipe in ("the source", "Q4_0, plain rounding", "Q8_0, plain rounding", "Q4_0 100 %"):
            self.assertRegex(table, rf"(?m)B +\d+\.\d{{4}} .* {recipe}$")
        self.assertEqual(run("chat", out, "-p", "Capital?", "--temp", "0").stdout, b"Paris.\n")
        result = run("quantize", PARIS, out, "--auto", "--text", text, "--eval", short, "--max-loss", "1e-9%")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("learned from 1200 tokens", result.stdout.decode())
        self.assertEqual(run("chat", out, "-p", "Capital?", "--temp", "0").stdout, b"Paris.\n")
        before = out.read_bytes()
        for name, message in ((short, "450 tokens to learn from and 450 to judge by: each needs 512"),
                              (HERE / "missing.txt", "missing.txt: cannot be opened")):
            result = run("quantize", PARIS, out, "--auto", "--text", name)
            self.assertEqual(result.returncode, 1)
            self.assertIn(message, result.stderr.decode())
            self.assertEqual(out.read_bytes(), before)
        result = run("quantize", PARIS, text, "--type", "Q4_0", "--text", text)
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"the text and OUT are the same file", result.stderr)
        self.assertEqual(text.read_text()[:10], "0123456789")

    def test_keeps_what_is_there(self):
        folder = HERE / "kept"
        folder.mkdir()
        source = folder / "source.gguf"
        source.write_bytes(PARIS.read_bytes())
        (folder / "symbolic.gguf").symlink_to("source.gguf")
        (folder / "hard.gguf").hardlink_to(source)
        names = {path.name for path in folder.iterdir()}

        def refused(args, message, **more):
            result = run("quantize", *args, "--type", "Q4_0", **more)
            self.assertEqual((result.returncode, result.stdout), (1, b""), result.stderr)
            self.assertIn(message, result.stderr.decode())
            self.assertEqual({path.name for path in folder.iterdir()}, names)
            self.assertEqual(source.read_bytes(), PARIS.read_bytes())

        for a, b in (("source", "source"), ("source", "symbolic"), ("symbolic", "source"), ("source", "hard"),
                     ("hard", "symbolic")):
            with self.subTest(a=a, b=b):
                refused([folder / f"{a}.gguf", folder / f"{b}.gguf"], "IN and OUT are the same file")
        refused([source, folder], "is a folder")
        refused([source, "/dev/null"], "is a device or pipe")
        refused([source, folder / "missing" / "out.gguf"], "cannot be written: No such file")
        refused([VOCABULARY, folder / "new.gguf"], "vocabulary")
        # A disk that fills up, whose old file stays. The limit on file sizes says it with another error.
        old = folder / "old.gguf"
        old.write_bytes(b"old")
        names.add("old.gguf")

        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

        refused([source, old], "cannot be written: File too large", preexec_fn=limit, restore_signals=False)
        self.assertEqual(old.read_bytes(), b"old")
        # A link to the old file is followed.
        (folder / "link.gguf").symlink_to("old.gguf")
        self.assertEqual(run("quantize", source, folder / "link.gguf", "--type", "Q4_0").returncode, 0)
        self.assertTrue((folder / "link.gguf").is_symlink())
        self.assertEqual(old.read_bytes()[:4], b"GGUF")

    def test_a_full_disk(self):
        small = HERE / "small"
        small.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", small], capture_output=True).returncode:
            self.skipTest("mounting a small file system is not allowed here")
        try:
            old = small / "old.gguf"
            old.write_bytes(b"old")
            result = run("quantize", PARIS, old, "--type", "Q4_0")
            self.assertEqual((result.returncode, result.stdout), (1, b""))
            self.assertIn(b"No space left on device. Make room", result.stderr)
            self.assertEqual([path.name for path in small.iterdir()], ["old.gguf"])
            self.assertEqual(old.read_bytes(), b"old")
        finally:
            subprocess.run(["umount", small], check=True)


if __name__ == "__main__":
    unittest.main()
