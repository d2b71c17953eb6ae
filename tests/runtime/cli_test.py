"""The program as its users meet it: exit codes, messages, pipes, and a chat on a pseudo-terminal.

    python cli_test.py PROGRAM [unittest arguments]

The models are made here: their layers add nothing, and the output head names for each token the one that follows it,
so what they say is known.
"""
import fcntl
import json
import math
import os
import pty
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

PROGRAM = sys.argv.pop(1) if len(sys.argv) > 1 else "thermocline"
U32, F32, STRING, ARRAY, I32 = 4, 6, 8, 9, 5
N_EMBD = 288   # one dimension for each token, and a multiple of 32
PATIENCE = 300  # seconds; --roofline reads memory many times over, and a sanitizer is slow at it


def byte_tokens():
    """GPT-2's way to write bytes as characters."""
    printable = [b for b in range(256) if 0x20 < b < 0x7F or (b > 0xA0 and b != 0xAD)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


TOKENS = byte_tokens() + ["<|im_start|>", "<|im_end|>", "qx"]   # the last one because a vocabulary needs a merge
START, END = 256, 257


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def kv(key, kind, value):
    head = text(key) + struct.pack("<I", kind)
    if kind == STRING:
        return head + text(value)
    if kind == ARRAY:
        element, values = value
        body = b"".join(text(v) if element == STRING else struct.pack("<i", v) for v in values)
        return head + struct.pack("<IQ", element, len(values)) + body
    return head + struct.pack({U32: "<I", F32: "<f"}[kind], value)


def write_model(path, follows=None, arch="llama", template=True, extra=b"", n_extra=0):
    """`follows`: token -> the one that comes next; None: a vocabulary alone."""
    meta = [
        kv("general.architecture", STRING, arch),
        kv("tokenizer.ggml.model", STRING, "gpt2"), kv("tokenizer.ggml.pre", STRING, "gpt-2"),
        kv("tokenizer.ggml.tokens", ARRAY, (STRING, TOKENS)),
        kv("tokenizer.ggml.token_type", ARRAY, (I32, [1] * 256 + [3, 3, 1])),
        kv("tokenizer.ggml.merges", ARRAY, (STRING, ["q x"])),
        kv("tokenizer.ggml.eos_token_id", U32, END),
    ]
    if template:
        meta.append(kv("tokenizer.chat_template", STRING,
                       "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
                       "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
                       "{% endif %}"))
    tensors = []
    if follows is not None:
        for key, value in {"block_count": 1, "embedding_length": N_EMBD, "feed_forward_length": 32,
                           "context_length": 512, "attention.head_count": 9, "attention.head_count_kv": 9}.items():
            meta.append(kv(f"{arch}.{key}", U32, value))
        meta.append(kv(f"{arch}.attention.layer_norm_rms_epsilon", F32, 1e-5))
        zeros = lambda *ne: (ne, bytes(4 * ne[0] * (ne[1] if len(ne) > 1 else 1)))
        ones = ((N_EMBD,), struct.pack("<f", 1) * N_EMBD)

        def rows(columns):
            data = bytearray(4 * N_EMBD * len(TOKENS))
            for row, column in columns:
                struct.pack_into("<f", data, 4 * (N_EMBD * row + column), 1)
            return ((N_EMBD, len(TOKENS)), bytes(data))

        tensors = [("token_embd.weight", rows((t, t) for t in range(len(TOKENS)))),
                   ("output.weight", rows((b, a) for a, b in follows.items())), ("output_norm.weight", ones),
                   ("blk.0.attn_norm.weight", ones), ("blk.0.ffn_norm.weight", ones)]
        tensors += [(f"blk.0.attn_{x}.weight", zeros(N_EMBD, N_EMBD)) for x in ("q", "k", "v", "output")]
        tensors += [(f"blk.0.ffn_{x}.weight", zeros(N_EMBD, 32)) for x in ("gate", "up")]
        tensors.append(("blk.0.ffn_down.weight", zeros(32, N_EMBD)))
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta) + n_extra) + b"".join(meta) + extra
    offset = 0
    for name, (ne, data) in tensors:
        out += text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, 0, offset)
        offset += (len(data) + 31) // 32 * 32
    out += bytes(-len(out) % 32)
    for _, (_, data) in tensors:
        out += data + bytes(-len(data) % 32)
    path.write_bytes(out)


def chain(*texts):
    """Tokens that follow each other: of each text, and its last one at the end of the turn unless it is a loop."""
    follows = {}
    for ids in texts:
        follows.update(zip(ids, ids[1:]))
    return follows


FOLDER = tempfile.TemporaryDirectory()
HERE = Path(FOLDER.name)
PARIS, LOOP, VOCABULARY = HERE / "paris.gguf", HERE / "loop.gguf", HERE / "vocabulary.gguf"
STRANGER, PLAIN = HERE / "stranger.gguf", HERE / "plain.gguf"
TERMINATED = list(b"\nParis.") + [END]
write_model(PARIS, chain(TERMINATED, list(b"?A") + [END], list(b"0123456789") + [END]))
write_model(LOOP, chain(list(b"\n0123456789\n")))
write_model(PLAIN, chain(TERMINATED), template=False)
write_model(VOCABULARY)
write_model(STRANGER, arch="mamba\x1b[31m", extra=kv("general.evil", STRING, "a\x1b]0;title\x07b\nc"), n_extra=1)
ENVIRONMENT = dict(os.environ, XDG_CACHE_HOME=str(HERE / "cache"), TERM="xterm", PIP_NO_INDEX="1", PIP_FIND_LINKS="")


def run(*args, stdin=b"", **more):
    return subprocess.run([PROGRAM, *map(str, args)], input=stdin, capture_output=True, timeout=PATIENCE,
                          env=ENVIRONMENT, **more)


class Usage(unittest.TestCase):
    def check(self, args, code, *messages, stdin=b""):
        result = run(*args, stdin=stdin)
        error = result.stderr.decode()
        self.assertEqual(result.returncode, code, error)
        for message in messages:
            self.assertIn(message, error)
        if code != 0:
            self.assertEqual(result.stdout, b"")
        self.assertNotIn("\x1b", error)

    def test_wrong_usage(self):
        for args, *messages in [
            ([], "Usage: thermocline COMMAND"),
            (["caht"], "unknown command 'caht'; did you mean `chat`?"),
            (["--verson"], "unknown flag '--verson'"),
            (["chat", "--tmep", "0"], "unknown flag '--tmep'; did you mean --temp?"),
            (["chat", "-temp", "0"], "did you mean --temp?"),
            (["chat", "a", "b"], "too many arguments: 'b'"),
            (["chat", "a", "-m", "b"], "MODEL is given twice: 'a' and -m 'b'"),
            (["chat", "-p"], "-p needs a value"),
            (["chat", "--raw=1"], "--raw takes no value"),
            (["chat", "-t", "0"], "-t/--threads: 0 is out of range; it goes from 1 to 256"),
            (["chat", "-c", "-1"], "-c/--ctx-size: -1 is out of range"),
            (["chat", "-n", "many"], "-n/--predict: 'many' is not a whole number"),
            (["chat", "-n", "99999999999999999999"], "is out of range"),
            (["chat", "-s", "4294967296"], "from -1 to 4294967295"),
            (["chat", "--temp", "nan"], "--temp: 'nan' is not a number"),
            (["chat", "--top-p", "1.5"], "--top-p: 1.5 is out of range; it goes from 0 to 1"),
            (["chat", "--min-p", "-0.1"], "--min-p: -0.1 is out of range"),
            (["chat", "--repeat-penalty", "0"], "--repeat-penalty: 0 is out of range"),
            (["chat", "--stop=", "-p", "x"], "--stop: an empty text"),
            (["chat", "--raw", "-sys", "x", "-p", "y"], "exclude each other"),
            (["tokenize", "-p", "x", "-f", "y"], "exclude each other"),
            (["template"], "--messages is missing"),
            (["perplexity"], "--text is missing"),
            (["perplexity", "--text", "x", "--chunks", "0"], "--chunks: 0 is out of range"),
            (["quantize", "a"], "IN and OUT are needed"),
            (["quantize", "a", "b"], "--type is missing, or --auto"),
            (["quantize", "a", "b", "--auto"], "--auto needs --text"),
            (["quantize", "a", "b", "--auto", "--text", "c", "--pure"], "leave out --type and --pure"),
            (["quantize", "a", "b", "--type", "Q4_0", "--eval", "c"], "--eval and --max-loss belong to --auto"),
            (["quantize", "a", "b", "--auto", "--text", "c", "--max-loss", "1 %"], "--max-loss: '1 %' is not a percentage"),
            (["quantize", "a", "b", "--auto", "--text", "c", "--max-loss", "0"], "is not a percentage above 0"),
            (["quantize", "a", "b", "--type", "Q4_k_m"], "unknown type 'Q4_k_m' (did you mean Q4_K?); it is one of Q4_0"),
            (["bench", "-o", "xml"], "'xml' is none of md, csv, json, jsonl"),
            (["bench", "-t", "1,,2"], "-t/--threads: '' is not a whole number"),
            (["bench", "-p", "0", "-n", "0"], "nothing to measure"),
            (["pull", "gema3-270m"], "did you mean `gemma3-270m`?"),
            (["machine", "x"], "too many arguments"),
        ]:
            with self.subTest(args=args):
                self.check(args, 2, *messages)

    def test_failures(self):
        missing = HERE / "missing.txt"
        (HERE / "empty.gguf").write_bytes(b"")
        for args, *messages in [
            (["chat", missing, "-p", "x"], "missing.txt: no such file"),
            (["chat", "-p", "x"], "pull smollm2"),
            (["inspect"], "thermocline pull"),
            (["chat", HERE / "empty.gguf", "-p", "x"], "empty.gguf"),
            (["chat", VOCABULARY, "-p", "x"], "vocabulary.gguf"),
            (["chat", STRANGER, "-p", "x"], "stranger.gguf", "mamba"),
            (["chat", PLAIN, "-p", "x"], "has no chat template", "--template"),
            (["chat", PARIS, "--template", missing, "-p", "x"], "missing.txt"),
            (["chat", PARIS, "-f", missing], "missing.txt: cannot be opened"),
            (["chat", PARIS], "the prompt is empty"),
            (["chat", PARIS, "-c", "20", "-p", "word"], "context holds 20"),
            (["tokenize", PARIS, "--decode", "-p", "12 x3"], "'x3' at byte 3 is not a token id"),
            (["tokenize", PARIS, "--decode", "-p", "99999"], "99999"),
            (["tokenize", PARIS, "--decode", "-p", "-1"], "-1"),
            (["perplexity", PARIS, "--text", missing], "missing.txt: cannot be opened"),
        ]:
            with self.subTest(args=args):
                self.check(args, 1, "error: ", *messages)

    def test_help(self):
        for command in "chat tokenize template inspect perplexity quantize bench machine pull".split():
            result = run(command, "--help")
            self.assertEqual((result.returncode, result.stderr), (0, b""))
            self.assertIn(f"thermocline {command}".encode(), result.stdout)
        self.assertRegex(run("--version").stdout, rb"^thermocline \d+\.\d+\.\d+\n$")
        self.assertIn(b"Commands:", run("--help").stdout)

    def test_output_that_fails(self):
        for args in (["chat", PARIS, "-p", "x"], ["tokenize", PARIS, "-p", "x"], ["inspect", PARIS], ["--help"]):
            with self.subTest(args=args), open("/dev/full", "wb") as full:
                result = subprocess.run([PROGRAM, *map(str, args)], stdin=subprocess.DEVNULL, stdout=full,
                                        stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=PATIENCE)
                self.assertEqual(result.returncode, 1)
                self.assertIn(b"cannot write to standard output: No space left", result.stderr)
        closed = run("tokenize", PARIS, "-p", "x", preexec_fn=lambda: os.close(1))
        self.assertEqual(closed.returncode, 1)
        read, write = os.pipe()
        os.close(read)
        broken = subprocess.run([PROGRAM, "tokenize", str(PARIS), "-p", "x"], stdin=subprocess.DEVNULL, stdout=write,
                                stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=PATIENCE)
        os.close(write)
        self.assertEqual(broken.returncode, 1)
        self.assertIn(b"Broken pipe", broken.stderr)


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


class Terminal:
    """The program on a pseudo-terminal."""

    def __init__(self, *args):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(PROGRAM, [PROGRAM, *map(str, args)], ENVIRONMENT)
        fcntl.ioctl(self.fd, 0x5414, struct.pack("HHHH", 40, 120, 0, 0))   # TIOCSWINSZ
        self.screen = ""

    def type(self, keys):
        os.write(self.fd, keys.encode())

    def enter(self, keys):
        """Types at the next prompt: what comes before the line editor is there would be the terminal driver's."""
        self.expect("> ")
        self.type(keys)

    def expect(self, pattern):
        """Waits until the output since the last match matches; returns the match."""
        end = time.monotonic() + PATIENCE
        while True:
            match = re.search(pattern, self.screen)
            if match:
                self.screen = self.screen[match.end():]
                return match
            try:
                ready = select.select([self.fd], [], [], max(0, end - time.monotonic()))[0]
                more = os.read(self.fd, 65536) if ready else b""
            except OSError:
                more = b""
            if not more:
                raise AssertionError(f"{pattern!r} did not come; the screen has {self.screen!r}")
            self.screen += more.decode(errors="replace")

    def leave(self):
        """The exit code."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                if select.select([self.fd], [], [], 0.02)[0]:
                    os.read(self.fd, 65536)
            except OSError:
                time.sleep(0.02)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError("it did not leave")


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


class Text(unittest.TestCase):
    def test_tokenize(self):
        result = run("tokenize", VOCABULARY, stdin=b"Hi <|im_end|>\n")
        self.assertEqual(result.stdout, b"72 105 32 257 10\n")
        self.assertEqual(run("tokenize", VOCABULARY, stdin=b"").stdout, b"\n")
        text = "Zwölf \U0001F40B <|im_start|>\n\n \t x".encode()
        for flags in ([], ["--no-special"]):
            ids = run("tokenize", VOCABULARY, *flags, stdin=text).stdout
            back = run("tokenize", VOCABULARY, "--decode", *flags, stdin=ids)
            self.assertEqual((back.returncode, back.stdout), (0, text))
        self.assertEqual(run("tokenize", VOCABULARY, "--decode", "-p", "255 195").stdout, b"\xff\xc3")

    def test_template(self):
        messages = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "u\n"}]}]
        path = HERE / "messages.json"
        expected = b"<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu\n<|im_end|>\n<|im_start|>assistant\n"
        for value in (messages, {"messages": messages}):
            path.write_text(json.dumps(value))
            result = run("template", VOCABULARY, "--messages", path)
            self.assertEqual((result.returncode, result.stdout), (0, expected), result.stderr)
        for bad, message in [
            ("[{]", "messages.json: not JSON, at byte 3"),
            ("[" * 100 + "]" * 100, "nested deeper than"),
            ('"x"', "not a list of messages"),
            ("[1]", "message 1 is not an object"),
            ('[{"content": "x"}]', 'message 1 has no "role"'),
            ('[{"role": "user"}]', 'message 1 has no "content"'),
            ('[{"role": "user", "content": 1}]', "neither a string nor a list"),
            ('[{"role": "user", "content": [{"type": "image_url"}]}]', "only text is supported"),
        ]:
            with self.subTest(bad=bad):
                path.write_text(bad)
                result = run("template", VOCABULARY, "--messages", path)
                self.assertEqual((result.returncode, result.stdout), (1, b""))
                self.assertIn(message, result.stderr.decode())

    def test_perplexity(self):
        path = HERE / "text.txt"
        path.write_text("0123456789" * 20 + "tail")
        result = run("perplexity", PARIS, "--text", path, "--ctx", "64", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        value = json.loads(result.stdout)
        self.assertEqual(set(value), {"perplexity", "chunks", "tokens"})
        self.assertEqual((len(value["chunks"]), value["tokens"]), (3, 3 * 31))
        self.assertEqual(value["perplexity"], value["chunks"][-1])
        # What follows is sure (its logit is sqrt(288), all others are 0) but for "0" after "9": three times a chunk.
        for running in value["chunks"]:
            self.assertAlmostEqual(running, math.exp(3 * math.sqrt(N_EMBD) / 31), delta=0.02)
        self.assertIn(b"[3/3]", result.stderr)
        one = run("perplexity", PARIS, "--text", path, "-c", "64", "--chunks", "1")
        self.assertEqual(one.stdout.decode(), f"{value['chunks'][0]:.4f}\n")
        short = run("perplexity", PARIS, "--text", path)
        self.assertEqual(short.returncode, 1)
        self.assertIn(b"the text has 204 tokens, too few for one chunk of 512", short.stderr)

    def test_quantize(self):
        """Whole models, so that a wrong nibble would change what is said."""
        folder = HERE / "quantized"
        folder.mkdir()
        for kind, embedding, matrix in (("Q8_0", "Q8_0", "Q8_0"), ("q4_0", "Q5_0", "Q4_0"), ("Q4_K", "Q5_1", "Q5_0")):
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

    def test_quantize_with_a_text(self):
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
        for recipe in ("the source", "Q4_0, plain rounding", "Q8_0, error feedback", "Q4_0, error feedback"):
            self.assertRegex(table, rf"(?m)B +\d+\.\d{{4}} .* {recipe}$")
        self.assertEqual(run("chat", out, "-p", "Capital?", "--temp", "0").stdout, b"Paris.\n")
        before = out.read_bytes()
        for args, message in ((["--text", short], "450 tokens to learn from and 450 to judge by: each needs 512"),
                              (["--text", text, "--eval", short, "--max-loss", "1e-9%"], None),
                              (["--text", HERE / "missing.txt"], "missing.txt: cannot be opened")):
            result = run("quantize", PARIS, out, "--auto", *args)
            self.assertEqual(result.returncode, 0 if message is None else 1, result.stderr)
            if message is not None:
                self.assertIn(message, result.stderr.decode())
            self.assertEqual(out.read_bytes(), before)
        result = run("quantize", PARIS, text, "--type", "Q4_0", "--text", text)
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"the text and OUT are the same file", result.stderr)
        self.assertEqual(text.read_text()[:10], "0123456789")

    def test_quantize_keeps_what_is_there(self):
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

    def test_quantize_on_a_full_disk(self):
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

    def test_inspect(self):
        out = run("inspect", PARIS).stdout.decode()
        for part in ("general.architecture", "llama", "blk.0.attn_q.weight", "288 x 288", "F32", "Architecture llama",
                     "1 layers, embedding 288", "Memory: ", "512 tokens"):
            self.assertIn(part, out)
        strange = run("inspect", STRANGER)
        self.assertEqual(strange.returncode, 0)
        self.assertIn("No tensors", strange.stdout.decode())
        self.assertIn("This model cannot run here", strange.stdout.decode())
        self.assertIn("\\nc", strange.stdout.decode())
        self.assertNotIn(b"\x1b", strange.stdout)
        self.assertNotIn(b"\x07", strange.stdout)

    def test_bench(self):
        result = run("bench", PARIS, "-p", "16,32", "-n", "4", "-d", "0,8", "-r", "2", "-t", "1", "-o", "json")
        self.assertEqual(result.returncode, 0, result.stderr)
        rows = json.loads(result.stdout)
        self.assertEqual([(r["n_prompt"], r["n_gen"], r["n_depth"]) for r in rows],
                         [(16, 0, 0), (32, 0, 0), (0, 4, 0), (16, 0, 8), (32, 0, 8), (0, 4, 8)])
        for row in rows:
            self.assertEqual((row["n_threads"], len(row["samples_ts"])), (1, 2))
            self.assertAlmostEqual(row["avg_ts"], sum(row["samples_ts"]) / 2)
            self.assertGreaterEqual(row["stddev_ts"], 0)
            self.assertEqual(row["model_filename"], str(PARIS))
        table = run("bench", PARIS, "-p", "8", "-n", "0", "-r", "1").stdout.decode().splitlines()
        self.assertEqual(len(table), 3)
        self.assertEqual(len({len(line) for line in table}), 1)
        self.assertIn("pp8", table[2])


if __name__ == "__main__":
    unittest.main()
