"""--sparsity as its users meet it.

    python sparsity_test.py PROGRAM [unittest arguments]
"""
import re
import unittest

from program import HERE, PARIS, VOCABULARY, run

RELU = HERE / "relu.gguf"
TEXT = HERE / "text.txt"
SHARES = re.compile(r"([\d.]+) % of neurons active, ([\d.]+) % of their up and down weights read")


def setUpModule():
    args = ["--shape", "tiny", "--vocabulary", VOCABULARY, "--activation", "relu", "--sparsity", "0.9"]
    result = run("synth", RELU, *args)
    assert result.returncode == 0, result.stderr
    TEXT.write_text("".join(chr(33 + i * i * 7 % 89) for i in range(128)))


class Sparsity(unittest.TestCase):
    def perplexity(self, mode, *args):
        result = run("perplexity", RELU, "--text", TEXT, "-c", "64", "--sparsity", mode, *args)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout, SHARES.search(result.stderr.decode())

    def test_prompts_are_the_same(self):
        dense, nothing = self.perplexity("dense")
        exact, shares = self.perplexity("exact")
        self.assertEqual(dense, exact)
        self.assertIsNone(nothing)
        self.assertIsNone(shares)  # no row was generated

    def test_generated_rows_say_what_they_read(self):
        dense, nothing = self.perplexity("dense", "--decode")
        exact, shares = self.perplexity("exact", "--decode")
        self.assertIsNone(nothing)
        self.assertAlmostEqual(float(exact) / float(dense), 1, delta=1e-3)
        active, read = float(shares[1]), float(shares[2])
        self.assertTrue(5 < active < 15, active)
        self.assertTrue(active < read < 50, read)
        self.assertEqual(self.perplexity("auto", "--decode")[0], exact)

    def test_chat_and_bench_say_it_too(self):
        for args in (["chat", RELU, "--raw", "-p", "x", "-n", "5"], ["bench", RELU, "-p", "8", "-n", "2", "-r", "1"]):
            with self.subTest(args=args):
                result = run(*args)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertRegex(result.stderr.decode(), SHARES)
                result = run(*args, "--sparsity", "dense")
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertNotRegex(result.stderr.decode(), SHARES)

    def test_auto_asks_the_profile(self):
        """Where hardly any neuron is silent, reading all of them is faster."""
        busy = HERE / "busy.gguf"
        args = ["--shape", "tiny", "--vocabulary", VOCABULARY, "--activation", "relu", "--sparsity", "0.1"]
        self.assertEqual(run("synth", busy, *args).returncode, 0)
        long = HERE / "long.txt"
        long.write_text(TEXT.read_text() * 3)
        read = lambda model, mode: run("perplexity", model, "--text", TEXT, "-c", "64", "--decode", "--sparsity", mode)
        self.assertRegex(read(busy, "auto").stderr.decode(), SHARES)  # nothing is known of it yet
        for model in (busy, RELU):
            self.assertEqual(run("profile", model, "--text", long).returncode, 0)
        self.assertNotRegex(read(busy, "auto").stderr.decode(), SHARES)
        self.assertRegex(read(busy, "exact").stderr.decode(), SHARES)
        self.assertRegex(read(RELU, "auto").stderr.decode(), SHARES)
        heat = busy.with_suffix(".heat")
        heat.write_bytes(heat.read_bytes()[:-9])
        said = read(busy, "auto").stderr.decode()
        self.assertRegex(said, SHARES)
        self.assertIn("warning: ", said)
        self.assertIn("damaged", said)
        heat.unlink()
        RELU.with_suffix(".heat").unlink()

    def test_packed_weights_of_one_form_are_not_used_for_the_other(self):
        for mode in ("dense", "exact", "exact", "dense"):
            with self.subTest(mode=mode):
                kept = self.perplexity(mode, "--decode", "--cache-packed")
                self.assertEqual(kept[0], self.perplexity(mode, "--decode")[0])
        kept = sorted(path.name for path in (HERE / "cache" / "thermocline" / "packed").iterdir())
        self.assertEqual(len(kept), 2, kept)

    def test_what_cannot_be(self):
        result = run("bench", PARIS, "--sparsity", "exact")
        self.assertEqual((result.returncode, result.stdout), (1, b""))
        self.assertIn(b"--sparsity exact needs a model with the activation relu; this one's is silu", result.stderr)
        for command in ("bench", "chat", "perplexity"):
            result = run(command, PARIS, "--sparsity", "most", *(["--text", TEXT] if command == "perplexity" else []))
            self.assertEqual((result.returncode, result.stdout), (2, b""))
            self.assertIn(b"--sparsity: 'most' is none of auto, exact, dense", result.stderr)


if __name__ == "__main__":
    unittest.main()
