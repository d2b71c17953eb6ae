"""`synth` as its users meet it.

    python synth_test.py PROGRAM [unittest arguments]
"""
import resource
import signal
import unittest

from program import HERE, TOKENS, VOCABULARY, run

RELU = ["--activation", "relu", "--sparsity", "0.9"]


def synth(out, *args, vocabulary=VOCABULARY, **more):
    return run("synth", out, "--shape", "tiny", "--vocabulary", vocabulary, *args, **more)


class Synth(unittest.TestCase):
    def write(self, name, *args):
        path = HERE / f"{name}.gguf"
        result = synth(path, *args)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout.decode(), rf"{name}\.gguf: [\d.]+ MB, synthetic tiny .*random weights\n$")
        return path

    def test_every_type_runs(self):
        text = HERE / "text.txt"
        text.write_text("".join(chr(33 + i * i * 7 % 89) for i in range(256)))
        for kind in ("q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16", "F32"):
            for more in ([], RELU):
                with self.subTest(kind=kind, more=more):
                    result = run("perplexity", self.write("typed", "--type", kind, *more), "--text", text, "-c", "64")
                    self.assertEqual(result.returncode, 0, result.stderr)
                    # Random weights know nothing, but their activations are neither lost nor out of bounds: the logits
                    # have a deviation near 1, with which a text is about e^0.5 times as unlikely as among equals.
                    self.assertTrue(1.1 < float(result.stdout) / len(TOKENS) < 3, result.stdout)

    def test_the_seed_decides(self):
        for more in ([], RELU):
            first, again = (self.write("seeded", *more).read_bytes() for _ in range(2))
            self.assertEqual(first, again)
            other = self.write("seeded", "--seed", "2", *more).read_bytes()
            self.assertEqual(len(first), len(other))
            self.assertNotEqual(first, other)

    def test_all_commands_take_it_and_say_what_it_is(self):
        path = self.write("planted", *RELU, "--heat", "flat")
        name = "synthetic tiny Q4_0 relu, 90 % silent by flat heat, random weights"
        listed = run("inspect", path).stdout.decode()
        for part in (name, "FFN 1024 (relu)", "4 layers, embedding 512", "thermocline.synthetic.sparsity"):
            self.assertIn(part, listed)
        bench = run("bench", path, "-p", "8", "-n", "2", "-r", "1")
        self.assertEqual(bench.returncode, 0, bench.stderr)
        self.assertIn(b"synthetic", bench.stdout)
        said = run("chat", path, "--raw", "-p", "x", "-n", "3")
        self.assertEqual(said.returncode, 0, said.stderr)
        self.assertIn(f"{name}: what it says means nothing".encode(), said.stderr)
        real = run("chat", HERE / "paris.gguf", "-p", "Capital?", "--temp", "0")
        self.assertNotIn(b"synthetic", real.stderr)

    def test_wrong_usage(self):
        out = HERE / "never.gguf"
        for args, message in [
            ([], "OUT is needed"),
            ([out], "--shape is missing: tiny, 1b, 3b, 7b or 8b"),
            ([out, "--shape", "2b"], "--shape: unknown '2b' (did you mean 1b?); it is one of tiny, 1b, 3b, 7b, 8b"),
            ([out, "--shape", "tiny", "--type", "q4_k_m"], "--type: unknown 'Q4_K_M' (did you mean Q4_K?)"),
            ([out, "--shape", "tiny", "--activation", "gelu"], "--activation: unknown 'gelu'"),
            ([out, "--shape", "tiny", "--activation", "relu", "--sparsity", "1"], "--sparsity: 1 is out of range"),
            ([out, "--shape", "tiny", "--activation", "relu", "--sparsity", "-0.1"], "--sparsity: -0.1 is out of range"),
            ([out, "--shape", "tiny", "--activation", "relu", "--sparsity", "nan"], "--sparsity"),
            ([out, "--shape", "tiny", "--sparsity", "0.5"], "--sparsity needs --activation relu"),
            ([out, "--shape", "tiny", "--activation", "relu", "--heat", "zipf"], "--heat needs --sparsity"),
            ([out, "--shape", "tiny", *RELU, "--heat", "cold"], "--heat: unknown 'cold'"),
        ]:
            with self.subTest(args=args):
                result = run("synth", *args)
                self.assertEqual((result.returncode, result.stdout), (2, b""), result.stderr)
                self.assertIn(message, result.stderr.decode())
                self.assertFalse(out.exists())

    def test_what_cannot_be_written_leaves_nothing(self):
        folder = HERE / "synth"
        folder.mkdir()
        old = folder / "old.gguf"
        old.write_bytes(b"old")

        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

        full = dict(preexec_fn=limit, restore_signals=False)
        for out, vocabulary, message, more in [
            (old, VOCABULARY, "cannot be written: File too large", full),
            (folder, VOCABULARY, "is a folder", {}),
            (folder / "missing" / "out.gguf", VOCABULARY, "cannot be written: No such file", {}),
            (folder / "new.gguf", folder / "no.gguf", "no.gguf", {}),
            (folder / "new.gguf", old, "old.gguf", {}),   # no GGUF file
            (VOCABULARY, VOCABULARY, "the vocabulary's file and OUT are the same", {}),
        ]:
            with self.subTest(message=message):
                result = synth(out, vocabulary=vocabulary, **more)
                self.assertEqual((result.returncode, result.stdout), (1, b""), result.stderr)
                self.assertIn(message, result.stderr.decode())
                self.assertEqual([path.name for path in folder.iterdir()], ["old.gguf"])
                self.assertEqual(old.read_bytes(), b"old")


if __name__ == "__main__":
    unittest.main()
