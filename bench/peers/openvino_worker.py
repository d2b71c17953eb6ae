"""Measures OpenVINO GenAI for bench/peers/run: openvino_worker.py MODEL.gguf N_THREADS, in the venv that run makes.

Each line on standard input is a test, "n_prompt n_gen n_depth"; the answer is its tokens per second. Prompts are random
tokens: GenAI remembers the prefixes that it has seen and would not compute them again.
"""
import sys

import numpy
import openvino
import openvino_genai

model, n_threads = sys.argv[1], int(sys.argv[2])
pipeline = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=n_threads)
rng = numpy.random.default_rng()
warm = set()


def generate(n_prompt, n_gen):
    ids = rng.integers(1000, 40000, (1, n_prompt), dtype=numpy.int64)
    inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
    config = openvino_genai.GenerationConfig(max_new_tokens=n_gen, min_new_tokens=n_gen, ignore_eos=True,
                                             do_sample=False)
    return pipeline.generate(inputs, config).perf_metrics


for line in sys.stdin:
    n_prompt, n_gen, n_depth = map(int, line.split())
    context = max(n_prompt + n_depth, 1)
    if context not in warm:   # weights are packed, and code is generated, when a shape is first seen
        generate(context, 2)
        warm.add(context)
    if n_gen == 0:
        print(1000 * n_prompt / generate(context, 1).get_ttft().mean, flush=True)
    else:
        print(1000 / generate(context, n_gen + 1).get_tpot().mean, flush=True)
