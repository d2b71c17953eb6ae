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


def some_text(n):
    text = HERE / f"text{n}.txt"
    text.write_text("".join(chr(33 + i * i * 7 % 89) for i in range(n)))
    return text


def half_of(plan):
    """--vram for half of what a plan has on the device: besides, for a step's rows and what a GPU's program takes."""
    return (plan["device_bytes"] // 2 + plan["step_bytes"]) * 16 // 15 + 4096


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
        self.assertTrue(0 < everything["cpu_bytes"] < everything["device_bytes"])  # the embedding
        vram = half_of(everything)
        plans, _ = self.plan("--vram", vram, *fast)
        for name in ("this plan", "whole layers"):
            self.assertTrue(0 < plans[name]["device_bytes"] + plans[name]["step_bytes"] <= vram)
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
        for vram in ("100M", "12M", "200K"):
            with self.subTest(vram=vram):
                plan.write_bytes(run("plan", RELU, "--json", "-t", "1", "-c", "64", "--vram", vram, *fast).stdout)
                placed = json.loads(plan.read_text())["plans"][0]
                result = chat("--gpu", "emulated", "--placement", plan)
                self.assertEqual((result.returncode, result.stdout), (0, answer), result.stderr)
                said = result.stderr.decode()
                if placed["device_bytes"] == 0:
                    self.assertIn("the placement leaves everything to the CPU", said)
                    continue
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

    def test_a_device_is_measured(self):
        plans, said = self.plan("--gpu", "emulated", "--vram", "64M")
        self.assertIn("GB/s of weights", said)
        self.assertIn("no budget", plans)

    def test_heat_is_read(self):
        self.assertIn("nothing is known of which neurons fire", self.plan("--sparsity", "exact")[1])
        self.assertEqual(run("profile", RELU, "--text", some_text(600)).returncode, 0)
        plans, said = self.plan("--sparsity", "exact")
        self.assertNotIn("nothing is known", said)
        RELU.with_suffix(".heat").rename(HERE / "moved.heat")
        self.assertNotIn("nothing is known", self.plan("--sparsity", "exact", "--heat", HERE / "moved.heat")[1])

    def test_the_hottest_neurons_are_placed_and_only_by_the_heat_they_were_planned_with(self):
        heat, plan = HERE / "planned.heat", HERE / "hot.json"
        profile = lambda n, out: run("profile", RELU, "--text", some_text(n), "-o", out)
        self.assertEqual(profile(900, heat).returncode, 0)
        fast = ("--device-bandwidth", "1e5", "--device-launch", "0", "--device-latency", "0")
        common = ("plan", RELU, "--json", "-t", "1", "-c", "64", "--sparsity", "exact", *fast, "--heat", heat)
        # Room for a part of the layers' neurons and the rows that only a split needs.
        for order in ("file", "neurons", "blocks"):
            result = run(*common, "--vram", "14M", "--order", order)
            self.assertEqual(result.returncode, 0, result.stderr)
            plans = {entry["name"]: entry for entry in json.loads(result.stdout)["plans"]}
            hot = plans["this plan"]
            self.assertEqual(hot.get("order", {}).get("by", "file"), order)
        self.assertTrue(any(0 < layer["n_hot"] < 1024 for layer in hot["layers"]))
        # Blocks may be worth nothing here; sums of the same may differ by their roundings.
        self.assertLess(hot["seconds_per_token"], (1 + 1e-6) * plans["the file's order"]["seconds_per_token"])
        self.assertNotIn("order", plans["the file's order"])

        def chat(*args, placed=hot):
            plan.write_text(json.dumps(placed))
            return run("chat", RELU, "--raw", "-p", "x", "-n", "8", "--temp", "0", "--sparsity", "exact", "--gpu",
                       "emulated", "--placement", plan, *args)
        result = chat("--heat", heat)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertTrue(result.stdout)
        other = HERE / "other.heat"
        self.assertEqual(profile(700, other).returncode, 0)
        for args, placed, complaint in [
            ((), hot, b"is missing; name the .heat file with --heat"),
            (("--heat", other), hot, b"another order than the .heat file tells of; plan anew"),
            (("--heat", HERE / "nothing.heat"), hot, b"nothing.heat"),
            (("--heat", plan), hot, b"not a .heat file"),
            (("--heat", heat), {**hot, "order": 7}, b"\"by\" is missing"),
            (("--heat", heat), {**hot, "order": {"by": "name", "hash": "0"}}, b"neither \"blocks\" nor"),
            (("--heat", heat), {**hot, "order": {"by": 3, "hash": "0"}}, b"neither \"blocks\" nor"),
            (("--heat", heat), {**hot, "order": {"by": "blocks", "hash": 5}}, b"another order"),
            (("--heat", heat), {**hot, "order": {"by": "blocks"}}, b"\"hash\" is missing"),
        ]:
            with self.subTest(args=args, order=placed.get("order")):
                result = chat(*args, placed=placed)
                self.assertEqual((result.returncode, result.stdout), (1, b""), result.stderr)
                self.assertIn(complaint, result.stderr)

    def test_predictors_are_planned_with(self):
        heat = HERE / "predicting.heat"
        args = ("plan", RELU, "--json", "-t", "1", "-c", "64", "--sparsity", "predicted", "--heat", heat)
        self.assertEqual(run("profile", RELU, "--text", some_text(2600), "-o", heat).returncode, 0)
        untrained = run(*args)
        self.assertEqual((untrained.returncode, untrained.stdout), (1, b""))
        self.assertIn(b"profile MODEL --text FILE --train-predictors", untrained.stderr)
        trained = run("profile", RELU, "--text", some_text(2600), "-o", heat, "--train-predictors")
        self.assertEqual(trained.returncode, 0, trained.stderr)
        fast = ("--device-bandwidth", "1e5", "--device-launch", "0", "--device-latency", "0")
        result = run(*args, "--vram", "14M", "--order", "blocks", *fast)
        self.assertEqual(result.returncode, 0, result.stderr)
        out = json.loads(result.stdout)
        self.assertEqual(out["sparsity"], "predicted")
        plan = HERE / "predicted.json"
        plan.write_text(json.dumps(out["plans"][0]))
        model = HERE / "predicting.gguf"
        model.write_bytes(RELU.read_bytes())
        said = run("chat", model, "--raw", "-p", "x", "-n", "8", "--temp", "0", "--sparsity", "predicted", "--gpu",
                   "emulated", "--placement", plan)
        self.assertEqual(said.returncode, 0, said.stderr)
        self.assertRegex(said.stderr.decode(), r"[\d.]+ % of neurons predicted")

    def test_errors(self):
        for args, code, complaint in [
            (("--vram", "lots"), 2, b"--vram: 'lots' is no size"),
            (("--sparsity", "most"), 2, b"--sparsity: 'most' is none of auto, dense, exact, predicted"),
            (("--heat", HERE / "missing"), 1, b"missing"),
            (("--heat", RELU), 1, b"not a .heat file"),
            (("--order", "name"), 2, b"--order: 'name' is none of file, blocks, neurons"),
            (("--gpu", "first"), 2, b"--gpu: 'first' is no number of a GPU"),
            (("--gpu", "99"), 1, b"--gpu 99: "),
            (("--ram", "1K"), 1, b"cannot be cut so that it fits"),
            (("-c", "16000000"), 1, b"16000000 tokens takes"),
        ]:
            with self.subTest(args=args):
                result = run("plan", RELU, "-c", "64", *args)
                self.assertEqual((result.returncode, result.stdout), (code, b""), result.stderr)
                self.assertIn(complaint, result.stderr)


if __name__ == "__main__":
    unittest.main()
