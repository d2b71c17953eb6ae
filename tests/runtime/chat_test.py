"""Chat: one answer through pipes, and a conversation on a pseudo-terminal.

    python chat_test.py PROGRAM [unittest arguments]
"""
import os
import re
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from program import ENVIRONMENT, HERE, LOOP, PARIS, PATIENCE, PLAIN, PROGRAM, run
from terminal import Terminal


class Chat(unittest.TestCase):
    def answer(self, *args, stdin=b"", code=0):
        result = run("chat", *args, "--temp", "0", stdin=stdin)
        self.assertEqual(result.returncode, code, result.stderr.decode())
        return result.stdout.decode(), result.stderr.decode()

    def test_answers_once(self):
        out, err = self.answer(PARIS, "-p", "Capital?")
        self.assertEqual(out, "Paris.\n")
        rate = r"[\d.]+ tok/s"
        self.assertRegex(err, rf"\[prompt \d+ tokens, {rate} \| answer 6 tokens, {rate} \| context \d+ of 512\]\n$")
        self.assertNotIn("\x1b", err)
        self.assertEqual(self.answer(PLAIN, "--template", "chatml", "-p", "x")[0], "Paris.\n")

    def test_joins_prompt_file_and_input(self):
        (HERE / "part.txt").write_text("file\n")
        count = lambda text: len(text.encode()) + len("user\n\nassistant\n") + 3   # three control tokens

        def fed(*args, stdin):
            return int(re.search(r"prompt (\d+) tokens", self.answer(PARIS, *args, stdin=stdin)[1])[1])

        self.assertEqual(fed("-p", "Sum up:", stdin=b"text\n"), count("Sum up:\n\ntext"))
        self.assertEqual(fed(stdin=b"text\n"), count("text"))
        self.assertEqual(fed("-p", "a", "-f", HERE / "part.txt", stdin=b"b"), count("a\n\nfile\n\nb"))

    def test_raw(self):
        self.assertEqual(self.answer(PARIS, "--raw", "-p", "Why?")[0], "A\n")
        self.assertEqual(self.answer(PARIS, "--raw", "-p", "01234")[0], "56789\n")

    def test_limits(self):
        self.assertEqual(self.answer(PARIS, "-p", "x", "-n", "3")[0], "Par\n")
        self.assertEqual(self.answer(PARIS, "-p", "x", "--stop", "is", "--stop", "zzz")[0], "Par\n")
        out, err = self.answer(LOOP, "--raw", "-p", "0", "-c", "24", code=1)
        self.assertEqual(out, "123456789\n0123456789\n012\n")
        self.assertIn("error: the context is full, 24 of 24 tokens", err)

    def test_seed(self):
        flags = "--raw -p 0 -n 40 --temp 50 --top-k 0 --top-p 1 --min-p 0".split()
        speak = lambda *more: run("chat", LOOP, *flags, *more)
        one = speak("-s", "7", "-t", "1")
        self.assertIn(b"| seed 7]", one.stderr)
        self.assertEqual(one.stdout, speak("-s", "7", "-t", "2").stdout)
        self.assertNotEqual(one.stdout, speak("-s", "8").stdout)

    def test_invalid_utf8_is_replaced_and_said(self):
        out, err = self.answer(PARIS, stdin=b"a\xff\xfeb")
        self.assertEqual(out, "Paris.\n")
        self.assertIn("standard input is not valid UTF-8: 2 invalid parts replaced by U+FFFD", err)

    def test_interrupt_keeps_the_answer(self):
        with subprocess.Popen([PROGRAM, "chat", LOOP, "--raw", "-p", "0", "-c", "1000000"], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
            said = process.stdout.read(5)
            process.send_signal(signal.SIGINT)
            rest, err = process.communicate(timeout=PATIENCE)
        self.assertEqual(said, b"12345")
        self.assertTrue(rest.endswith(b"\n"))
        self.assertIn(b"answer", err)
        self.assertEqual(process.returncode, 130)


class CachePacked(unittest.TestCase):
    def test_packs_once_and_answers_the_same(self):
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model.gguf"
            model.write_bytes(PARIS.read_bytes())
            cache = Path(folder) / "cache"
            environment = dict(ENVIRONMENT, XDG_CACHE_HOME=str(cache))

            def answer(**changes):
                result = subprocess.run([PROGRAM, "chat", str(model), "-p", "x", "--temp", "0", "--cache-packed"],
                                        stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE,
                                        env=dict(environment, **changes))
                self.assertEqual(result.stdout, b"Paris.\n", result.stderr)
                return result.stderr.decode()

            self.assertNotIn("warning", answer())
            packed, = (cache / "thermocline" / "packed").iterdir()
            self.assertTrue(packed.name.startswith("model-"))
            inode = packed.stat().st_ino
            self.assertNotIn("warning", answer())
            self.assertEqual(packed.stat().st_ino, inode)
            os.truncate(packed, 100)
            self.assertIn(f"warning: {packed}: not used, and made anew", answer())
            self.assertNotIn("warning", answer())
            self.assertIn("warning: the packed weights cannot be kept: /dev/null/thermocline",
                          answer(XDG_CACHE_HOME="/dev/null"))

    def test_the_help_says_where(self):
        for command in ["chat", "bench", "perplexity"]:
            self.assertIn("~/.cache/thermocline/packed", " ".join(run(command, "--help").stdout.decode().split()))


STATISTICS = r"\[prompt (\d+) tokens, .* context (\d+) of (\d+)\]"


class Interactive(unittest.TestCase):
    def test_two_turns(self):
        terminal = Terminal("chat", PARIS, "--temp", "0")
        terminal.enter("Capital?\r")
        terminal.expect("Paris\\.")
        first = terminal.expect(STATISTICS)
        terminal.enter("Again?\r")
        terminal.expect("Paris\\.")
        second = terminal.expect(STATISTICS)
        # The answer's six tokens are held; of the second prompt only the turn's new ones are fed.
        new = len("\nuser\nAgain?\nassistant\n") + 4
        self.assertEqual(int(second[1]), new)
        self.assertEqual(int(second[2]), int(first[2]) + new + 6)
        terminal.enter("\x04")
        self.assertEqual(terminal.leave(), 0)
        history = HERE / "cache/thermocline/chat_history"
        self.assertIn("Capital?", history.read_text())
        self.assertEqual(history.stat().st_mode & 0o777, 0o600)

    def test_interrupt_stops_the_answer_and_keeps_it(self):
        terminal = Terminal("chat", LOOP, "--temp", "0", "-c", "1000000")
        terminal.enter("Count.\r")
        terminal.expect("0123456789")
        terminal.type("\x03")
        stopped = terminal.expect(STATISTICS)
        terminal.enter("More.\r")
        terminal.expect("0123456789")
        terminal.type("\x03")
        again = terminal.expect(STATISTICS)
        # What was said stays, but for its last token, which had not been fed.
        self.assertLessEqual(int(again[1]), len("\nuser\nMore.\nassistant\n") + 4 + 1)
        self.assertGreater(int(again[2]), int(stopped[2]))
        terminal.enter("/exit\r")
        self.assertEqual(terminal.leave(), 0)

    def test_interrupt_at_the_prompt(self):
        terminal = Terminal("chat", PARIS, "--temp", "0")
        terminal.enter("half a li")
        terminal.expect("half a li")
        terminal.type("\x03")
        terminal.expect(r"\^C")
        terminal.enter("ok?\r")
        self.assertEqual(int(terminal.expect(STATISTICS)[1]), len("user\nok?\nassistant\n") + 3)
        terminal.enter("\x03")
        terminal.expect("Ctrl-C again or Ctrl-D leaves")
        terminal.enter("\x03")
        self.assertEqual(terminal.leave(), 0)

    def test_a_paste_is_one_message(self):
        terminal = Terminal("chat", PARIS, "--temp", "0")
        terminal.enter("\x1b[200~one\rtwo\nthr\u00e9e\x1b[201~\r")
        terminal.expect("Paris\\.")
        prompt = "user\none\ntwo\nthr\u00e9e\nassistant\n"
        self.assertEqual(int(terminal.expect(STATISTICS)[1]), len(prompt.encode()) + 3)
        terminal.enter("/clear\r")
        terminal.expect("begins anew")
        terminal.enter("/help\r")
        terminal.expect("Ctrl-C stops an answer")
        terminal.enter("x\r")
        self.assertEqual(int(terminal.expect(STATISTICS)[2]), len("user\nx\nassistant\nParis.") + 3)
        terminal.enter("\x04")
        self.assertEqual(terminal.leave(), 0)

    def test_a_message_too_long_leaves_the_chat_usable(self):
        terminal = Terminal("chat", PARIS, "--temp", "0", "-c", "60")
        terminal.enter("x" * 80 + "\r")
        terminal.expect("error: the prompt has \\d+ tokens, but the context holds 60")
        terminal.enter("ok?\r")
        terminal.expect("Paris\\.")
        terminal.expect(STATISTICS)
        terminal.enter("\x04")
        self.assertEqual(terminal.leave(), 0)


if __name__ == "__main__":
    unittest.main()
