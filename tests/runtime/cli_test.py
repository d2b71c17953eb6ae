"""The program as its users meet it: exit codes, messages, pipes, and the commands that answer in one go.

    python cli_test.py PROGRAM [unittest arguments]
"""
import json
import math
import os
import subprocess
import unittest

from program import ENVIRONMENT, HERE, N_EMBD, PARIS, PATIENCE, PLAIN, PROGRAM, STRANGER, VOCABULARY, run


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
            (["chat", "-tb", "0"], "--tb: 0 is out of range; it goes from 1 to 256"),
            (["chat", "-c", "-1"], "-c/--ctx-size: -1 is out of range"),
            (["chat", "-n", "many"], "-n/--predict: 'many' is not a whole number"),
            (["chat", "-n", "99999999999999999999"], "is out of range"),
            (["chat", "-s", "4294967296"], "from -1 to 4294967295"),
            (["chat", "--temp", "nan"], "--temp: 'nan' is not a number"),
            (["chat", "--top-p", "1.5"], "--top-p: 1.5 is out of range; it goes from 0 to 1"),
            (["chat", "--min-p", "-0.1"], "--min-p: -0.1 is out of range"),
            (["chat", "--repeat-penalty", "0"], "--repeat-penalty: 0 is out of range"),
            (["chat", "-ctk", "q4_0"], "--ctk: 'q4_0' is none of f16, q8_0"),
            (["chat", "--cache-type-v", "Q8_0"], "--ctv: 'Q8_0' is none of f16, q8_0"),
            (["perplexity", "-ctv", ""], "--ctv: '' is none of f16, q8_0"),
            (["inspect", "-ctk"], "--ctk needs a value"),
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
        for command in "chat tokenize template inspect perplexity quantize synth bench machine pull".split():
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

    def test_inspect(self):
        out = run("inspect", PARIS).stdout.decode()
        for part in ("general.architecture", "llama", "blk.0.attn_q.weight", "288 x 288", "F32", "Architecture llama",
                     "1 layers, embedding 288", "Memory: ", "512 tokens"):
            self.assertIn(part, out)
        # Of a token 288 keys and as many values: 2 bytes each, or 1 and a scale of 2 per 32.
        for flags, size in [([], "589.8 kB"), (["-ctk", "q8_0"], "451.6 kB"),
                            (["-ctk", "q8_0", "--cache-type-v", "q8_0"], "313.3 kB")]:
            self.assertRegex(run("inspect", PARIS, *flags).stdout.decode(), f" 512 tokens +{size} more")
        strange = run("inspect", STRANGER)
        self.assertEqual(strange.returncode, 0)
        self.assertIn("No tensors", strange.stdout.decode())
        self.assertIn("This model cannot run here", strange.stdout.decode())
        self.assertIn("\\nc", strange.stdout.decode())
        self.assertNotIn(b"\x1b", strange.stdout)
        self.assertNotIn(b"\x07", strange.stdout)


if __name__ == "__main__":
    unittest.main()
