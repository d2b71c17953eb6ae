"""What measures the program: `bench` in all its forms, and --trace.

    python bench_test.py PROGRAM [unittest arguments]
"""
import csv
import io
import json
import os
import unittest
import xml.etree.ElementTree

from program import HERE, LOOP, N_EMBD, PARIS, TOKENS, run

N_FF = 32
PROJECTIONS = 4 * N_EMBD * N_EMBD + 3 * N_FF * N_EMBD   # weights of the layer
HEAD = len(TOKENS) * N_EMBD


def kv_bytes(kind):
    """What keys, or values, of a token take: a head of N_EMBD dims, 32 of which share a scale."""
    return 2 * N_EMBD if kind == "f16" else N_EMBD + 2 * -(-N_EMBD // 32)


def work(n_prompt, n_gen, n_depth=0, n_parallel=1, types=("f16", "f16")):
    """Bytes and operations of a test of this file's models, in F32; up to 512 rows are one step."""
    steps = [(n_depth, n_prompt)] * (n_prompt > 0) + [(n_depth + n_prompt + i, 1) for i in range(n_gen)]
    n_bytes = sum(4 * (PROJECTIONS + HEAD) + n_parallel * sum(map(kv_bytes, types)) * (at + rows) for at, rows in steps)
    ops = sum(2 * rows * PROJECTIONS + 2 * HEAD + 4 * N_EMBD * sum(at + r + 1 for r in range(rows)) for at, rows in steps)
    return n_bytes, n_parallel * ops


class Bench(unittest.TestCase):
    def bench(self, *args):
        result = run("bench", PARIS, *args)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout.decode()

    def listed(self, *args):
        return [(row["n_prompt"], row["n_gen"], row["n_depth"])
                for row in map(json.loads, self.bench(*args, "-r", "1", "-t", "1", "-o", "jsonl").splitlines())]

    def test_rows(self):
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

    def test_ranges(self):
        self.assertEqual(self.listed("-p", "8-32*2,5", "-n", "0"), [(8, 0, 0), (16, 0, 0), (32, 0, 0), (5, 0, 0)])
        self.assertEqual(self.listed("-p", "0", "-n", "1-3", "-d", "0-20+10"),
                         [(0, n, d) for d in (0, 10, 20) for n in (1, 2, 3)])
        self.assertEqual(self.listed("-p", "6-6,4", "-n", "0"), [(6, 0, 0), (4, 0, 0)])

    def test_pairs(self):
        self.assertEqual(self.listed("-p", "0", "-n", "0", "-pg", "8,2", "--pg", "4,1", "-d", "0,3"),
                         [(8, 2, 0), (4, 1, 0), (8, 2, 3), (4, 1, 3)])
        self.assertIn("pp8+tg2 @ d3", self.bench("-p", "0", "-n", "0", "-pg", "8,2", "-d", "3", "-r", "1"))

    def test_parallel(self):
        args = ["-p", "4", "-n", "0,2", "-pg", "3,2", "-npl", "1-4*2", "-d", "0,70", "-r", "2", "-t", "1"]
        rows = json.loads(self.bench(*args, "-o", "json"))
        self.assertEqual([(row["n_prompt"], row["n_gen"], row["n_depth"], row["n_parallel"]) for row in rows],
                         [test for d in (0, 70) for test in [(4, 0, d, 1), *((0, 2, d, n) for n in (1, 2, 4)), (3, 2, d, 1)]])
        for row in rows:
            self.assertEqual((row["bytes"], row["ops"]),
                             work(row["n_prompt"], row["n_gen"], row["n_depth"], row["n_parallel"]))
            tokens = row["n_parallel"] * (row["n_prompt"] + row["n_gen"])
            for time, rate in zip(row["samples_ns"], row["samples_ts"]):
                self.assertAlmostEqual(rate * time * 1e-9 / tokens, 1, places=4)
        table = self.bench("-p", "0", "-n", "2", "--npl", "3,1", "-d", "5", "-r", "1")
        self.assertIn(" tg2 x3 @ d5 |", table)
        self.assertIn(" tg2 @ d5 |", table)

    def test_types_of_the_kv_cache(self):
        both = ["f16", "q8_0"]
        rows = json.loads(self.bench("-p", "5", "-n", "2", "-d", "70", "-r", "1", "-t", "1,2", "-o", "json",
                                     "-ctk", "f16,q8_0", "--cache-type-v", "q8_0,f16"))
        self.assertEqual([(row["type_k"], row["type_v"], row["n_threads"], row["n_prompt"]) for row in rows],
                         [(k, v, t, p) for t in (1, 2) for k in both for v in reversed(both) for p in (5, 0)])
        for row in rows:
            self.assertEqual((row["bytes"], row["ops"]),
                             work(row["n_prompt"], row["n_gen"], 70, types=(row["type_k"], row["type_v"])))
        table = self.bench("-p", "0", "-n", "2", "-r", "1", "-ctk", "q8_0", "-ctv", "q8_0,f16")
        self.assertIn(" tg2, KV q8_0 |", table)
        self.assertIn(" tg2, KV q8_0/f16 |", table)

    def test_wrong_usage(self):
        for args, message in [
            (["-npl", "0"], "--npl: 0 is out of range; it goes from 1 to 512"),
            (["-npl", "4,513"], "--npl: 513 is out of range; it goes from 1 to 512"),
            (["-npl", "1-512", "-n", "1,2"], "more than 1000 tests"),
            (["-npl"], "--npl needs a value"),
            (["-ctk"], "--ctk needs a value"),
            (["-ctk", "f16,"], "--ctk: '' is none of f16, q8_0"),
            (["-ctv", "q4_0"], "--ctv: 'q4_0' is none of f16, q8_0"),
            (["-ctv", "F16\x1b"], "is none of f16, q8_0"),
            (["-ctk", ",".join(["f16"] * 1001)], "--ctk: more than 1000 types"),
            (["-p", "5-"], "-p/--n-prompt: '' is not a whole number"),
            (["-p", "9-5"], "9-5 begins above its end"),
            (["-p", "0-8*2"], "0-8*2 never ends"),
            (["-p", "1-8*1"], "1 is out of range; it goes from 2"),
            (["-p", "1-8+0"], "0 is out of range; it goes from 1"),
            (["-p", "1-99999"], "more than 1000 numbers"),
            (["-p", "1-500", "-n", "1-500", "-d", "0,1"], "more than 1000 tests"),
            (["-p", "-5"], "-p/--n-prompt: -5 is out of range"),
            (["-pg", "8"], "-pg: '8' is not two numbers"),
            (["-pg", "8,-2"], "-pg: '8,-2' is not two numbers"),
            (["-pg", "8,2,1"], "-pg: '8,2,1' is not two numbers"),
            (["-pg"], "--pg needs a value"),
            (["-o", "x\x1b"], "is none of md, csv, json, jsonl"),
        ]:
            with self.subTest(args=args):
                result = run("bench", PARIS, *args)
                self.assertEqual((result.returncode, result.stdout), (2, b""))
                self.assertIn(message, result.stderr.decode())
                self.assertNotIn(b"\x1b", result.stderr)

    def test_formats_agree(self):
        args = ["-p", "8", "-n", "2", "-r", "2", "-t", "1"]
        rows = json.loads(self.bench(*args, "-o", "json"))
        lines = [json.loads(line) for line in self.bench(*args, "-o", "jsonl").splitlines()]
        table = list(csv.DictReader(io.StringIO(self.bench(*args, "-o", "csv"))))
        self.assertEqual([row.keys() for row in rows], [line.keys() for line in lines])
        self.assertEqual(len(table), 2)
        for row, line in zip(rows, table):
            self.assertEqual([key for key, value in row.items() if not isinstance(value, list)], list(line))
            self.assertEqual((str(row["n_prompt"]), row["model_filename"]), (line["n_prompt"], line["model_filename"]))
            self.assertGreater(float(line["avg_ts"]), 0)

    def test_roofline(self):
        picture = HERE / "roofline.svg"
        for flags in (["--roofline", picture], [f"--roofline={picture}"]):   # two: each measures the memory
            picture.unlink(missing_ok=True)
            rows = json.loads(self.bench("-p", "16", "-n", "3", "-d", "0,5", "-pg", "4,2", "-r", "1", "-t", "1", "-o", "json",
                                         *flags))
            for row in rows:
                self.assertEqual((row["bytes"], row["ops"]), work(row["n_prompt"], row["n_gen"], row["n_depth"]))
                seconds = row["avg_ns"] * 1e-9
                self.assertAlmostEqual(row["bandwidth_fraction"] * row["read_bandwidth_gb_s"] * 1e9 * seconds / row["bytes"], 1,
                                       places=4)
                self.assertAlmostEqual(row["peak_fraction"] * row["peak_gops"] * 1e9 * seconds / row["ops"], 1, places=4)
            text = picture.read_text()
            svg = xml.etree.ElementTree.fromstring(text)
            words = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
            for name in ("pp16", "tg3", "pp4+tg2", "pp16 @ d5"):
                self.assertEqual(sum(word.startswith(name + ":") for word in words), 1)
            self.assertFalse([word for word in (" href", "url(", "nan", "inf") if word in text])
            for circle in svg.iter("{http://www.w3.org/2000/svg}circle"):
                self.assertTrue(70 < float(circle.get("cx")) < 840 and 70 < float(circle.get("cy")) < 470)
        table = self.bench("-p", "8", "-n", "0", "-r", "1", "--roofline").splitlines()
        self.assertIn("of read", table[0])
        self.assertEqual(len({len(line) for line in table}), 1)
        result = run("bench", PARIS, "--roofline", HERE / "nowhere" / "x.svg")
        self.assertEqual((result.returncode, result.stdout), (1, b""))

    def test_contended(self):
        cpus = sorted(os.sched_getaffinity(0))
        rows = json.loads(self.bench("-p", "4", "-n", "2", "-r", "1", "-t", "1", "-o", "json", "--contended"))
        self.assertEqual([row["busy_cpu"] for row in rows[:2]], [None, None])
        self.assertGreaterEqual(len(rows), 3)
        for row in rows[2:]:
            self.assertEqual((row["n_prompt"], row["n_gen"]), (0, 2))
            self.assertIn(row["busy_cpu"], cpus)
        self.assertIn(f"tg2, CPU {rows[2]['busy_cpu']} busy", self.bench("-p", "0", "-n", "2", "-r", "1", "--contended"))


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
