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

    def test_form(self):
        """Silent neurons change no bit of what is computed from bundles; panels add up in another order."""
        exact, shares = self.perplexity("exact", "--decode", "--form", "f2")
        dense, all_read = self.perplexity("dense", "--decode", "--form", "f2")
        self.assertEqual(dense, exact)
        self.assertEqual(float(all_read[2]), 100)
        self.assertLess(float(shares[2]), 50)
        self.assertEqual(self.perplexity("dense", "--decode", "--form", "f1"), self.perplexity("dense", "--decode"))
        for mode, form, why in (("exact", "f1", b"--form f1: --sparsity exact is computed from f2"),
                                ("dense", "f3", b"--sparsity dense is computed from f1, f2"),
                                ("dense", "f4", b"'f4' is none of f1, f2, f3"), ("auto", "f1", b"--form goes with")):
            with self.subTest(mode=mode, form=form):
                result = run("perplexity", RELU, "--text", TEXT, "--sparsity", mode, "--form", form)
                self.assertEqual((result.returncode, result.stdout), (2, b""))
                self.assertIn(why, result.stderr)

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

    def test_threshold(self):
        silu, text = HERE / "silu.gguf", HERE / "words.txt"
        self.assertEqual(run("synth", silu, "--shape", "tiny", "--vocabulary", VOCABULARY).returncode, 0)
        text.write_text("".join(chr(33 + i * i * 7 % 89) for i in range(2600)))
        heat = silu.with_suffix(".heat")
        chat = lambda mode, *args: run("chat", silu, "--raw", "-p", "x", "-n", "40", "--temp", "0", "--sparsity", mode,
                                       *args)
        missing = chat("threshold")
        self.assertEqual((missing.returncode, missing.stdout), (1, b""))
        self.assertIn(b"profile MODEL --text FILE --max-rise 1%", missing.stderr)
        self.assertEqual(run("profile", silu, "--text", text).returncode, 0)
        self.assertIn(b"has no thresholds", chat("threshold").stderr)
        result = run("profile", silu, "--text", text, "--thresholds", "50%,0.2")
        self.assertEqual(result.returncode, 0, result.stderr)
        for share in (20, 50):
            self.assertRegex(result.stdout.decode(), rf"without {share} % +[+-][\d.]+ % perplexity")
        for mode, low, high in (("threshold:0.2", 70, 90), ("threshold:0.35", 55, 75), ("threshold:50%", 40, 60)):
            with self.subTest(mode=mode):
                said = chat(mode, "--audit", "10%")
                self.assertEqual(said.returncode, 0, said.stderr)
                shares = SHARES.search(said.stderr.decode())
                self.assertTrue(low < float(shares[1]) < high, said.stderr)
                self.assertRegex(said.stderr.decode(), r"audit: 4 tokens, FFNs miss [\d.]+ % \([\d.]+ % when")
        self.assertIn(b"leaving out about 50 % of neurons", chat("threshold").stderr)
        self.assertIn(b"95 % of neurons is more than", chat("threshold:0.95").stderr)
        score = lambda mode, *args: run("perplexity", silu, "--text", text, "-c", "64", "--chunks", "2", "--sparsity",
                                        mode, *args).stdout
        self.assertNotEqual(score("threshold:0.5"), score("dense"))
        self.assertEqual(score("threshold:0.5"), score("threshold:0.5", "--decode"))
        self.assertEqual(run("profile", silu, "--text", text, "--max-rise", "50").returncode, 0)
        self.assertIn(b"leaving out about ", chat("threshold").stderr)
        heat.write_bytes(heat.read_bytes()[:-9])
        damaged = chat("threshold")
        self.assertEqual((damaged.returncode, damaged.stdout), (1, b""))
        self.assertIn(b"damaged", damaged.stderr)

    def test_predicted(self):
        model = HERE / "predicted.gguf"
        model.write_bytes(RELU.read_bytes())
        text = HERE / "predicted.txt"
        text.write_text("".join(chr(33 + i * i * 7 % 89) for i in range(2600)))
        heat = model.with_suffix(".heat")
        chat = lambda *args: run("chat", model, "--raw", "-p", "x", "-n", "40", "--temp", "0", "--sparsity",
                                 "predicted", *args)
        missing = chat()
        self.assertEqual((missing.returncode, missing.stdout), (1, b""))
        self.assertIn(b"profile MODEL --text FILE --train-predictors", missing.stderr)
        self.assertEqual(run("profile", model, "--text", text).returncode, 0)
        self.assertIn(b"no predictors in it", chat().stderr)
        self.assertIn(b"no predictors in it", run("profile", model, "--evaluate", "--text", text).stderr)
        result = run("profile", model, "--text", text, "--train-predictors", "--recall", "90%")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout.decode(), r"predictors of [\d.]+ MB +[\d.]+ % of what fires is found among")
        said = chat("--audit", "10%")
        self.assertEqual(said.returncode, 0, said.stderr)
        shares = re.search(r"([\d.]+) % of neurons predicted, ([\d.]+) % active, ([\d.]+) % of the bytes",
                           said.stderr.decode())
        self.assertTrue(0 < float(shares[2]) <= float(shares[1]) < 100, said.stderr)
        self.assertRegex(said.stderr.decode(), r"audit: 4 tokens, FFNs miss [\d.]+ % \([\d.]+ % when")
        evaluated = run("profile", model, "--evaluate", "--text", text)
        self.assertEqual(evaluated.returncode, 0, evaluated.stderr)
        self.assertRegex(evaluated.stdout.decode(), r"recall of signs\n( +\d+ +\d+ [ \d.]+\n)+ +all ")
        self.assertRegex(evaluated.stdout.decode(), r"perplexity [\d.]+, predicted [+-][\d.]+ \+- [\d.]+ %")
        score = lambda mode, *args: run("perplexity", model, "--text", text, "-c", "64", "--chunks", "2", "--sparsity",
                                        mode, *args).stdout
        self.assertNotEqual(score("predicted"), score("dense"))
        self.assertEqual(score("predicted"), score("predicted", "--decode"))
        self.assertEqual(score("predicted", "--cache-packed"), score("predicted", "--cache-packed"))
        heat.write_bytes(heat.read_bytes()[:-9])
        damaged = chat()
        self.assertEqual((damaged.returncode, damaged.stdout), (1, b""))
        self.assertIn(b"damaged", damaged.stderr)

    def test_packed_weights_of_one_form_are_not_used_for_the_other(self):
        for mode in ("dense", "exact", "exact", "dense"):
            with self.subTest(mode=mode):
                kept = self.perplexity(mode, "--decode", "--cache-packed")
                self.assertEqual(kept[0], self.perplexity(mode, "--decode")[0])
        kept = sorted(path.name for path in (HERE / "cache" / "thermocline" / "packed").iterdir())
        self.assertEqual(len([name for name in kept if name.startswith("relu")]), 2, kept)

    def test_what_cannot_be(self):
        result = run("bench", PARIS, "--sparsity", "exact")
        self.assertEqual((result.returncode, result.stdout), (1, b""))
        self.assertIn(b"--sparsity exact needs a model with the activation relu; this one's is silu", result.stderr)
        for command in ("bench", "chat", "perplexity"):
            result = run(command, PARIS, "--sparsity", "most", *(["--text", TEXT] if command == "perplexity" else []))
            self.assertEqual((result.returncode, result.stdout), (2, b""))
            self.assertIn(b"--sparsity: 'most' is none of auto, exact, dense, predicted, threshold, threshold:0.4", result.stderr)
        for args, complaint in [
            (("--sparsity", "threshold:1.5"), b"'1.5' is not a share between 0 and 1"),
            (("--sparsity", "exact:0.4"), b"'exact:0.4' is none of auto"),
            (("--sparsity", "exact", "--audit", "1%"), b"--audit belongs to --sparsity threshold and predicted"),
            (("--sparsity", "threshold", "--audit", "0"), b"--audit: '0' is not a percentage"),
        ]:
            with self.subTest(args=args):
                result = run("bench", RELU, *args)
                self.assertEqual((result.returncode, result.stdout), (2, b""))
                self.assertIn(complaint, result.stderr)


if __name__ == "__main__":
    unittest.main()
