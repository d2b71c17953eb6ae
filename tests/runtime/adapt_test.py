"""chat --adapt: what it learns, keeps and moves.

    python adapt_test.py PROGRAM [unittest arguments]
"""
import re
import time
import unittest

from program import HERE, VOCABULARY, run
from terminal import Terminal

MODEL = HERE / "adapt.gguf"
HEAT = MODEL.with_suffix(".heat")
ONCE = ["chat", MODEL, "--raw", "-p", "x", "-n", "20", "--temp", "0"]
# Room for a part of the neurons.
DEVICE = ["-c", "256", "--gpu", "emulated", "--vram", "17M"]


def setUpModule():
    result = run("synth", MODEL, "--shape", "tiny", "--type", "Q8_0", "--activation", "relu", "--sparsity", "0.9",
                 "--vocabulary", VOCABULARY)
    assert result.returncode == 0, result.stderr


class Adapt(unittest.TestCase):
    def setUp(self):
        HEAT.unlink(missing_ok=True)

    def good(self, *args):
        result = run(*args)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout, result.stderr.decode()

    def recent(self):
        text = HERE / "adapt.txt"
        text.write_text("".join(chr(33 + i * i * 7 % 89) for i in range(400)))
        said = self.good("profile", MODEL, "--text", text)[0].decode()
        match = re.search(r"chat has learned from +(\d+) recent tokens", said)
        return int(match[1]) if match else 0

    def test_on_the_cpu_it_learns_and_says_that_nothing_moves(self):
        plain = self.good(*ONCE)
        self.assertFalse(HEAT.exists())
        answer, said = self.good(*ONCE, "--adapt")
        self.assertEqual(answer, plain[0])
        self.assertIn("there is nothing to re-plan; what fires is kept in", said)
        self.assertTrue(HEAT.exists())
        result = run("profile", MODEL)
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"only what chat has learned", result.stderr)
        fed = int(re.search(r"answer (\d+) tokens", said)[1])   # the prompt's last one, and all but the last
        self.assertGreater(fed, 10)
        self.assertEqual(self.recent(), fed)   # and profile leaves it in the file that it writes
        self.good(*ONCE, "--adapt")
        self.assertEqual(self.recent(), round(fed + fed * 2 ** (-fed / 512)))
        self.assertNotIn("re-plan", self.good(*ONCE)[1])

    def test_neurons_move_while_it_waits(self):
        terminal = Terminal("chat", MODEL, "--template", "chatml", "-n", "60", "--temp", "2", "-s", "5", "--adapt",
                            *DEVICE)
        for turn in range(2):
            if turn > 0:
                terminal.expect("> ")
                time.sleep(1)   # who types is slower than a layer
                terminal.screen = "> "
            terminal.enter("Again\r")
            if turn == 0:
                hits, best = terminal.expect(r"([\d.]+) % of firings on the device, ([\d.]+) % when").groups()
                self.assertGreater(float(best), float(hits) + 5)
        last = terminal.expect(r"moved the hottest neurons of (\d+) layers to the device")
        self.assertGreater(int(last[1]), 0)
        self.assertGreater(float(terminal.expect(r"([\d.]+) % of firings on the device")[1]), float(hits) + 5)
        terminal.enter("\x04")
        self.assertEqual(terminal.leave(), 0)
        self.assertGreater(self.recent(), 50)

    def test_the_next_start_begins_with_what_was_learned(self):
        def hits(*args):
            said = self.good("chat", MODEL, "--raw", "-p", "x", "-n", "60", "--temp", "2", "-s", "6", *DEVICE, *args)[1]
            return float(re.search(r"([\d.]+) % of firings on the device", said)[1])

        first = hits("--adapt")
        self.assertGreater(hits("--adapt"), first + 5)

    def test_a_damaged_file_is_refused_and_stays(self):
        self.good(*ONCE, "--adapt")
        content = HEAT.read_bytes()
        for bad in (content[:-1], content[:1000] + b"x" + content[1001:]):
            HEAT.write_bytes(bad)
            result = run(*ONCE, "--adapt")
            self.assertEqual(result.returncode, 1)
            self.assertIn(b"adapt.heat", result.stderr)
            self.assertEqual(HEAT.read_bytes(), bad)

    def test_models_that_have_no_silent_neurons(self):
        result = run(*ONCE, "--adapt", "--sparsity", "dense")
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"--adapt is for models whose silent neurons are not read", result.stderr)

    def test_profile_says_what_following_is_worth(self):
        texts = [HERE / "first.txt", HERE / "second.txt"]
        for seed, path in enumerate(texts):
            path.write_text("".join(chr(33 + i * i * (7 + 4 * seed) % 89) for i in range(600)))
        said = self.good("profile", MODEL, "--text", texts[0], "--then", texts[1])[0].decode()
        rows = [line.split() for line in said.splitlines()[3:]]
        self.assertEqual(len(rows), 4)
        for row in rows:
            shares = [float(x) for x in row if re.fullmatch(r"\d+\.\d", x)]
            self.assertEqual(len(shares), 5, row)
            self.assertLessEqual(shares[0], shares[3] + 0.1)  # their own heat is best
            self.assertGreater(shares[0], 20)
        self.assertFalse(HEAT.exists())
        self.assertEqual(run("profile", MODEL, "--then", texts[1]).returncode, 2)


if __name__ == "__main__":
    unittest.main()
