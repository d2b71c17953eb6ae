"""`plan` as its users meet it.

    python plan_test.py PROGRAM [unittest arguments]
"""
import json
import unittest

from program import HERE, VOCABULARY, run

RELU = HERE / "relu.gguf"


def setUpModule():
    args = ["--shape", "tiny", "--vocabulary", VOCABULARY, "--activation", "relu", "--sparsity", "0.9"]
    result = run("synth", RELU, *args)
    assert result.returncode == 0, result.stderr


class Plan(unittest.TestCase):
    def plan(self, *args):
        result = run("plan", RELU, "--json", "-t", "1", "-c", "64", *args)
        self.assertEqual(result.returncode, 0, result.stderr)
        out = json.loads(result.stdout)
        return {plan["name"]: plan for plan in out["plans"]}, result.stderr.decode()

    def test_without_a_device_all_is_on_the_cpu(self):
        plans, _ = self.plan()
        self.assertEqual(list(plans), ["this plan", "all on the CPU"])
        self.assertEqual(plans["this plan"]["seconds_per_token"], plans["all on the CPU"]["seconds_per_token"])
        self.assertEqual(plans["this plan"]["device_bytes"], 0)

    def test_a_fast_device_holds_what_its_memory_does(self):
        fast = ("--device-bandwidth", "1e5", "--device-launch", "0", "--device-latency", "0")
        everything = self.plan("--vram", "1G", *fast)[0]["this plan"]
        self.assertEqual(everything["cpu_bytes"], 0)
        vram = everything["device_bytes"] // 2
        plans, _ = self.plan("--vram", vram, *fast)
        for name in ("this plan", "whole layers"):
            self.assertTrue(0 < plans[name]["device_bytes"] <= vram)
        self.assertLessEqual(plans["this plan"]["seconds_per_token"], plans["whole layers"]["seconds_per_token"])
        self.assertLess(plans["no budget"]["seconds_per_token"], plans["this plan"]["seconds_per_token"])
        self.assertLess(plans["this plan"]["seconds_per_token"], plans["all on the CPU"]["seconds_per_token"])
        n_ff = {layer["n_hot"] for layer in self.plan("--vram", vram, *fast, "--layers-only")[0]["this plan"]["layers"]}
        self.assertEqual(len(n_ff | {0}), 2)
        text = run("plan", RELU, "-t", "1", "-c", "64", "--vram", vram, *fast).stdout.decode()
        for word in ("this plan", "whole layers", "no budget", "neurons on the device", "tokens/s"):
            self.assertIn(word, text)

    def test_what_is_planned_is_what_runs(self):
        chat = lambda *args: run("chat", RELU, "--raw", "-p", "x", "-n", "8", "--temp", "0", *args)
        fast = ("--device-bandwidth", "1e4", "--device-launch", "0", "--device-latency", "0")
        plan, answer = HERE / "plan.json", chat().stdout
        for vram in ("100M", "4M", "200K"):
            with self.subTest(vram=vram):
                plan.write_bytes(run("plan", RELU, "--json", "-t", "1", "-c", "64", "--vram", vram, *fast).stdout)
                placed = json.loads(plan.read_text())["plans"][0]
                result = chat("--gpu", "emulated", "--placement", plan)
                self.assertEqual((result.returncode, result.stdout), (0, answer), result.stderr)
                said = result.stderr.decode()
                self.assertEqual("the head" in said, placed["head"] == "device", said)
                n_attention = sum(layer["attention"] == "device" for layer in placed["layers"])
                self.assertIn(f"attention of {n_attention} of {len(placed['layers'])} layers", said)
        for change, complaint in [
            (lambda p: p["layers"].pop(), b"does not fit"),
            (lambda p: p["layers"][0].update(n_hot=32), b"does not fit"),
            (lambda p: p["layers"][0].update(n_hot=-64), b"layer 0: \"n_hot\" is no number"),
            (lambda p: p["layers"][1].update(kv="disk"), b"layer 1: \"kv\" is neither"),
            (lambda p: p.pop("head"), b"\"head\" is missing"),
            (lambda p: p.update(layers=7), b"\"layers\" is no list"),
        ]:
            bad = json.loads(json.dumps(placed))
            change(bad)
            plan.write_text(json.dumps(bad))
            result = chat("--gpu", "emulated", "--placement", plan)
            self.assertEqual((result.returncode, result.stdout), (1, b""), result.stderr)
            self.assertIn(complaint, result.stderr)
        for text in ("", "{", "[]", '{"plans": []}', "[" * 5000):
            plan.write_text(text)
            result = chat("--gpu", "emulated", "--placement", plan)
            self.assertEqual((result.returncode, result.stdout), (1, b""), result.stderr)

    def test_heat_is_read(self):
        self.assertIn("nothing is known of which neurons fire", self.plan("--sparsity", "exact")[1])
        text = HERE / "text.txt"
        text.write_text("".join(chr(33 + i * i * 7 % 89) for i in range(600)))
        self.assertEqual(run("profile", RELU, "--text", text).returncode, 0)
        plans, said = self.plan("--sparsity", "exact")
        self.assertNotIn("nothing is known", said)
        RELU.with_suffix(".heat").rename(HERE / "moved.heat")
        self.assertNotIn("nothing is known", self.plan("--sparsity", "exact", "--heat", HERE / "moved.heat")[1])

    def test_errors(self):
        for args, code, complaint in [
            (("--vram", "lots"), 2, b"--vram: 'lots' is no size"),
            (("--sparsity", "most"), 2, b"--sparsity: 'most' is none of auto, dense, exact"),
            (("--heat", HERE / "missing"), 1, b"missing"),
            (("--heat", RELU), 1, b"not a .heat file"),
            (("--ram", "1K"), 1, b"cannot be cut so that it fits"),
            (("-c", "16000000"), 1, b"16000000 tokens takes"),
        ]:
            with self.subTest(args=args):
                result = run("plan", RELU, "-c", "64", *args)
                self.assertEqual((result.returncode, result.stdout), (code, b""), result.stderr)
                self.assertIn(complaint, result.stderr)


if __name__ == "__main__":
    unittest.main()
