"""The sampler chain in NumPy float64, and cases with what must survive it.

    python tests/oracle/sampler.py        writes tests/data/sampler/cases.json

A list of
    {"name", "logits": [floats; null stands for -inf],
     "last_tokens": [ids, oldest first],
     "temperature", "top_k" (0 = off), "top_p" (1 = off), "min_p" (0 = off), "repeat_penalty" (1 = off),
     "ids": [survivors, most probable first, equals by ascending id],
     "probabilities": [theirs]}

The chain, as llama.cpp orders its own: repeat penalty over the last 64 tokens (each distinct token once: a positive
logit is divided, another multiplied); top-k (equal logits: lower ids stay); top-p (the shortest prefix of the sorted
survivors whose probabilities, normed over them, reach p; at least one); min-p (at least min_p times the largest);
temperature divides; softmax. Temperature 0 is greedy: the largest logit after the penalty, of equals the lowest id,
with probability 1. Logits of -inf never survive. No probability comes within 1e-4 of a threshold, and the order after
the penalty is the same in float32, so that precision decides nothing.
Needs: numpy.
"""
import json
from pathlib import Path

import numpy as np

OUT = Path(__file__).resolve().parent.parent / "data" / "sampler" / "cases.json"
LAST = 64
MARGIN = 1e-4


def penalize(logits, last_tokens, penalty, kind=np.float64):
    out, penalty = logits.astype(kind), kind(penalty)
    for t in set(last_tokens[-LAST:]):
        out[t] = out[t] / penalty if out[t] > 0 else out[t] * penalty
    return out


def order(x):
    """Ids, the largest logit first, equals by id."""
    return np.lexsort((np.arange(len(x)), -x))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def clear_of(values, threshold):
    distance = np.abs(values - threshold)
    tied = (distance == 0) & (threshold == 1)   # with the largest, in any precision
    return bool(np.all((distance > MARGIN) | tied))


def chain(logits, last_tokens, temperature, top_k, top_p, min_p, repeat_penalty):
    """Returns ids, probabilities and whether every cut was clear of its threshold."""
    x = penalize(logits, last_tokens, repeat_penalty)
    ids = order(x)
    clear = np.array_equal(ids, order(penalize(logits, last_tokens, repeat_penalty, np.float32)))
    if temperature == 0:
        return [int(ids[0])], [1.0], clear
    ids = ids[np.isfinite(x[ids])]
    if top_k > 0:
        ids = ids[:top_k]
    if top_p < 1:
        cumulative = np.cumsum(softmax(x[ids]))
        clear &= clear_of(cumulative, top_p)
        ids = ids[:max(1, int(np.searchsorted(cumulative, top_p)) + 1)]
    if min_p > 0:
        p = softmax(x[ids])
        clear &= clear_of(p / p[0], min_p)
        ids = ids[p >= min_p * p[0]]
    p = softmax(x[ids] / temperature)
    return [int(i) for i in ids], [float(v) for v in p], clear


def make_logits(rng, kind, n):
    x = rng.normal(0, 3, n)
    if kind == "ties":
        x = np.round(x)
    elif kind == "masked":
        x[rng.random(n) < 0.6] = -np.inf
        x[rng.integers(n)] = 1.5
    elif kind == "flat":
        x = np.zeros(n)
    elif kind == "peaked":
        x[rng.integers(n)] = 30
    elif kind == "negative":
        x -= 40
    elif kind == "large":
        x *= 100
    return x.astype(np.float32).astype(np.float64)


KINDS = ["normal", "ties", "masked", "flat", "peaked", "negative", "large"]
DEFAULTS = dict(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, repeat_penalty=1.0)
SETTINGS = [
    DEFAULTS,
    dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0),
    dict(temperature=0.0, top_k=40, top_p=0.95, min_p=0.05, repeat_penalty=1.3),
    dict(temperature=0.01, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0),
    dict(temperature=2.5, top_k=7, top_p=1.0, min_p=0.0, repeat_penalty=1.1),
    dict(temperature=1.0, top_k=1, top_p=0.5, min_p=0.3, repeat_penalty=1.0),
    dict(temperature=1.3, top_k=0, top_p=0.6, min_p=0.0, repeat_penalty=1.2),
    dict(temperature=1.0, top_k=0, top_p=0.0, min_p=0.0, repeat_penalty=1.0),
    dict(temperature=0.7, top_k=0, top_p=1.0, min_p=0.21, repeat_penalty=1.5),
    dict(temperature=1.0, top_k=1000, top_p=0.9, min_p=0.1, repeat_penalty=0.8),
    dict(temperature=1.0, top_k=0, top_p=1.0, min_p=1.0, repeat_penalty=1.0),
]


def number(v):
    """The shortest decimal of a float32; null for -inf."""
    return None if np.isneginf(v) else json.loads(str(np.float32(v)))


def main():
    rng = np.random.default_rng(3)
    cases = []
    for kind in KINDS:
        for i, s in enumerate(SETTINGS):
            for _ in range(100):   # until no threshold is a matter of rounding
                n = int(rng.integers(32, 201))
                logits = make_logits(rng, kind, n)
                last = rng.integers(0, n, int(rng.integers(0, 100))).tolist() if s["repeat_penalty"] != 1 else []
                ids, p, clear = chain(logits, last, **s)
                if clear:
                    break
            else:
                continue
            cases.append({"name": f"{kind} {i}", "logits": [number(v) for v in logits], "last_tokens": last, **s,
                          "ids": ids, "probabilities": [float(f"{v:.9g}") for v in p]})
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")
    print(f"{len(cases)} cases")


if __name__ == "__main__":
    main()
