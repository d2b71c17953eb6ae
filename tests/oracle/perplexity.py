"""Perplexity in float32, by llama.cpp's protocol, of the weights that the `gguf` package dequantizes.

    python tests/oracle/perplexity.py SmolLM2-135M-Instruct.Q4_1.gguf gemma-3-270m-q4_k_m.gguf

writes tests/data/perplexity/expected.json from tests/data/perplexity/text.txt:
    {"text": "text.txt", "ctx": 512,
     "models": [{"file": name, "sha256": of the file,
                 "tokens": number of ids of the whole text, a BOS of the model included,
                 "tokens_fnv1a": FNV-1a 64 over those ids as little-endian u32, in hex,
                 "first_ids": the first 32,
                 "scored": number of predictions,
                 "chunks": [perplexity of everything scored up to and with chunk i]}]}

The protocol (tools/perplexity of llama.cpp): the text is tokenized as a whole, with BOS if the model wants one; every
chunk of ctx tokens is evaluated alone, its first token replaced by BOS if the model wants one; positions ctx/2 .. ctx-2
predict their next token; what is left after the last full chunk is dropped. The tokenizers here are made from the
file's vocabulary.
Needs: torch, transformers, tokenizers, gguf, numpy (requirements.txt).
"""
import argparse
import hashlib
import heapq
import json
import math
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

import gguf_torch

DATA = Path(__file__).resolve().parent.parent / "data" / "perplexity"
CTX = 512
USER_DEFINED, BYTE = 4, 6   # token types in GGUF


def smollm_ids(meta, text):
    tokens = meta.get("tokenizer.ggml.tokens")
    merges = [tuple(m.split(" ")) for m in meta.get("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    return tokenizer.encode(text).ids


def sentencepiece_merge(ids, scores, text):
    """SentencePiece BPE: of all neighbours that make a piece, the best score merges first, the leftmost of equals."""
    pieces = list(text)
    before, after = list(range(-1, len(pieces) - 1)), list(range(1, len(pieces) + 1))
    queue = []

    def consider(left):
        right = after[left] if left >= 0 else len(pieces)
        if left >= 0 and right < len(pieces):
            joined = pieces[left] + pieces[right]
            if joined in ids:
                heapq.heappush(queue, (-scores[ids[joined]], left, right, joined))

    for i in range(len(pieces) - 1):
        consider(i)
    while queue:
        _, left, right, joined = heapq.heappop(queue)
        if None in (pieces[left], pieces[right]) or after[left] != right or pieces[left] + pieces[right] != joined:
            continue   # a neighbour has merged meanwhile
        pieces[left], pieces[right] = joined, None
        after[left] = after[right]
        if after[right] < len(pieces):
            before[after[right]] = left
        consider(before[left])
        consider(left)
    return [p for p in pieces if p is not None]


def gemma_ids(meta, text):
    tokens, scores, types = (meta.get(f"tokenizer.ggml.{k}") for k in ("tokens", "scores", "token_type"))
    ids = {t: i for i, t in enumerate(tokens)}
    bytes_ = {int(t[3:5], 16): i for i, t in enumerate(tokens) if types[i] == BYTE}
    fragments = [text]   # a str is still text, an int is an id
    for i in sorted((i for i, t in enumerate(types) if t == USER_DEFINED), key=lambda i: -len(tokens[i].encode())):
        if tokens[i] in text:
            fragments = [part for f in fragments for part in (split(f, tokens[i], i) if isinstance(f, str) else [f])]
    out = []
    for f in fragments:
        if isinstance(f, int):
            out.append(f)
            continue
        for p in sentencepiece_merge(ids, scores, f.replace(" ", "\u2581")):
            out += [ids[p]] if p in ids else [bytes_[b] for b in p.encode()]
    return out


def split(text, token, token_id):
    parts = text.split(token)
    out = [parts[0]]
    for p in parts[1:]:
        out += [token_id, p]
    return [p for p in out if p != ""]


def tokenize(meta, text):
    bos = [meta.get("tokenizer.ggml.bos_token_id")] if meta.get("tokenizer.ggml.add_bos_token", False) else []
    kind = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre")
    assert kind in (("gpt2", "smollm"), ("llama", "default")), kind
    return bos + (smollm_ids(meta, text) if kind[0] == "gpt2" else gemma_ids(meta, text)), bos


def fnv1a(ids):
    h = 0xcbf29ce484222325
    for b in b"".join(i.to_bytes(4, "little") for i in ids):
        h = (h ^ b) * 0x100000001b3 % 2**64
    return f"{h:016x}"


def running_perplexity(model, ids, bos, ctx):
    nll, scored, out = 0.0, 0, []
    first = ctx // 2
    for start in range(0, len(ids) - ctx + 1, ctx):
        began = time.time()
        chunk = bos + ids[start + len(bos):start + ctx]
        with torch.no_grad():
            hidden = model.model(input_ids=torch.tensor([chunk])).last_hidden_state[0, first:ctx - 1]
            log_p = torch.log_softmax(model.lm_head(hidden).double(), dim=-1)
        nll -= float(log_p[torch.arange(ctx - 1 - first), torch.tensor(chunk[first + 1:])].sum())
        scored += ctx - 1 - first
        out.append(round(math.exp(nll / scored), 6))
        print(f"  [{len(out)}] {out[-1]:.4f}  ({time.time() - began:.1f} s)", flush=True)
    return out, scored


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--ids", action="store_true", help="print the token ids and stop")
    args = parser.parse_args()
    text = (DATA / "text.txt").read_bytes().decode()
    entries = []
    for path in args.models:
        model, meta = gguf_torch.load(path)
        ids, bos = tokenize(meta, text)
        if args.ids:
            print(*ids)
            continue
        assert getattr(model.config, "final_logit_softcapping", None) is None
        print(f"{path.name}: {len(ids)} tokens")
        chunks, scored = running_perplexity(model, ids, bos, CTX)
        entries.append({"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "tokens": len(ids),
                        "tokens_fnv1a": fnv1a(ids), "first_ids": ids[:32], "scored": scored, "chunks": chunks})
    if entries:
        lines = ",\n  ".join(json.dumps(e) for e in entries)
        (DATA / "expected.json").write_text(f'{{"text": "text.txt", "ctx": {CTX}, "models": [\n  {lines}\n]}}\n')


if __name__ == "__main__":
    main()
