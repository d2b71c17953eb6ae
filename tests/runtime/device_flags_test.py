"""--gpu and --vram as their users meet them, on a machine with or without a GPU.

    python device_flags_test.py PROGRAM [unittest arguments]
"""
import unittest

from program import HERE, VOCABULARY, run

MODEL = HERE / "device.gguf"
CHAT = ["chat", MODEL, "--raw", "-p", "x", "-n", "8", "--temp", "0"]


def setUpModule():
    result = run("synth", MODEL, "--shape", "tiny", "--vocabulary", VOCABULARY)
    assert result.returncode == 0, result.stderr


class DeviceFlags(unittest.TestCase):
    def good(self, *args):
        result = run(*args)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout, result.stderr.decode()

    def test_the_plan_is_said_and_the_answer_is_the_same(self):
        answer, said = self.good(*CHAT, "--gpu", "off")
        self.assertNotIn("emulated device", said)
        for vram, part in (("1G", "the head; "), ("40M", "attention of"), ("1K", "hold no part of this model")):
            with self.subTest(vram=vram):
                again, said = self.good(*CHAT, "--gpu", "emulated", "--vram", vram)
                self.assertEqual(answer, again)
                self.assertEqual(said.count("emulated device: "), 1)
                self.assertIn(part, said)

    def test_bench_and_perplexity_take_them(self):
        text = HERE / "device.txt"
        text.write_text("".join(chr(33 + i * i * 7 % 89) for i in range(128)))
        scores = [
            float(self.good("perplexity", MODEL, "--text", text, "-c", "64", "--decode", *args)[0])
            for args in ([], ["--gpu", "emulated"])
        ]
        self.assertAlmostEqual(scores[1] / scores[0], 1, delta=1e-3)
        table, said = self.good("bench", MODEL, "-p", "8", "-n", "2", "-r", "1", "--gpu", "emulated", "-t", "1,2")
        self.assertEqual(said.count("emulated device: "), 2)  # one for each engine
        self.assertIn(b"tg2", table)

    def test_what_is_not_there(self):
        for args in (["--gpu", "fast"], ["--gpu", "-1"], ["--vram", "3T"], ["--vram", "-1"], ["--vram", "G"]):
            with self.subTest(args=args):
                result = run(*CHAT, *args)
                self.assertEqual(result.returncode, 2, result.stderr)
                self.assertIn(args[0].encode(), result.stderr)
        result = run(*CHAT, "--gpu", "99")
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"--gpu 99: ", result.stderr)
        _, said = self.good(*CHAT, "--gpu", "auto")
        self.assertTrue("the CPU computes everything" in said or "MB of weights" in said, said)


if __name__ == "__main__":
    unittest.main()
