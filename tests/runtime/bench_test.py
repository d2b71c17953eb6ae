"""What measures the program: `bench` in all its forms, and --trace.

    python bench_test.py PROGRAM [unittest arguments]
"""
import json
import unittest

from cli_test import HERE, LOOP, N_EMBD, PARIS, TOKENS, run


class Trace(unittest.TestCase):
    def trace(self, *args):
        path = HERE / "trace.json"
        path.unlink(missing_ok=True)
        result = run(*args, "--trace", path)
        self.assertEqual(result.returncode, 0, result.stderr)
        trace = json.loads(path.read_text())
        self.assertGreater(trace["otherData"]["read_bandwidth_GB_per_s"], 0)
        self.assertEqual(trace["otherData"]["events_dropped"], 0)
        events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
        for event in events:
            self.assertGreaterEqual(event["ts"], 0)
            self.assertGreaterEqual(event["dur"], 0)
        steps = [event for event in events if event["name"] == "step"]
        return [[e for e in events if e["args"]["step"] == s["args"]["step"] and e is not s] for s in steps], steps

    def test_generation(self):
        parts, steps = self.trace("bench", PARIS, "-p", "0", "-n", "3", "-d", "70", "-r", "1", "-t", "1")
        self.assertEqual([step["args"]["rows"] for step in steps], [1, 70, 1, 1, 1])   # a warm-up, the depth
        self.assertEqual([event["name"] for event in parts[-1]],
                         ["rope tables + embed + norm", "attn_q + attn_k + attn_v", "rope + store kv", "attention",
                          "attn_output", "norm", "ffn_gate + ffn_up", "gated act", "ffn_down", "norm", "output"])
        args = {event["name"]: event["args"] for event in parts[-1]}
        self.assertEqual(args["attn_output"]["bytes"], 4 * N_EMBD * N_EMBD)
        self.assertEqual(args["attn_output"]["ops"], 2 * N_EMBD * N_EMBD)
        self.assertEqual(args["attention"]["bytes"], 73 * 2 * 2 * N_EMBD)   # keys and values of 73 tokens in F16
        self.assertEqual(args["attention"]["ops"], 73 * 4 * N_EMBD)
        self.assertEqual(args["ffn_down"]["layer"], 0)
        self.assertNotIn("layer", args["output"])
        for events, step in zip(parts, steps):
            for count in ("bytes", "ops"):
                self.assertEqual(sum(event["args"][count] for event in events), step["args"][count])
            begin, end = step["ts"], step["ts"] + step["dur"]
            for event in events:
                self.assertGreaterEqual(event["ts"], begin - 0.01)
                self.assertLessEqual(event["ts"] + event["dur"], end + 0.01)

    def test_threads_share_an_op(self):
        # Deep enough for the splits of attention to be shared out.
        parts, steps = self.trace("bench", PARIS, "-p", "0", "-n", "40", "-d", "1100", "-r", "1", "-t", "2")
        self.assertEqual({event["tid"] for events in parts for event in events}, {0, 1})
        for events, step in zip(parts, steps):
            # What the threads did adds up, but for a byte of rounding per event.
            self.assertAlmostEqual(sum(e["args"]["bytes"] for e in events), step["args"]["bytes"], delta=len(events))
        seen = [sum(e["args"]["bytes"] for e in events if e["name"] == "attention") for events in parts[-40:]]
        for i, count in enumerate(seen):
            self.assertAlmostEqual(count, (1101 + i) * 4 * N_EMBD, delta=8)

    def test_commands(self):
        (HERE / "scored.txt").write_text("01234567")
        for args in [["chat", PARIS, "-p", "x"], ["perplexity", PARIS, "--text", HERE / "scored.txt", "-c", "4"]]:
            with self.subTest(args=args):
                parts, _ = self.trace(*args)
                for events in parts:
                    self.assertIn("ffn_down", {event["name"] for event in events})

    def test_an_error_leaves_what_led_to_it(self):
        path = HERE / "trace.json"
        result = run("chat", LOOP, "--raw", "-p", "0", "-c", "24", "--trace", path)
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"the context is full", result.stderr)
        self.assertGreater(len(json.loads(path.read_text())["traceEvents"]), 100)

    def test_a_file_that_cannot_be_written(self):
        result = run("bench", PARIS, "--trace", HERE / "nowhere" / "x.json")
        self.assertEqual((result.returncode, result.stdout), (1, b""))
        self.assertIn(b"x.json: cannot be written: No such file", result.stderr)


if __name__ == "__main__":
    unittest.main()
