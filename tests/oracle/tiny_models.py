"""Tiny random models of every architecture, with the logits that transformers computes from them in float32.

    python tests/oracle/tiny_models.py            writes tests/data/tiny/
    python tests/oracle/tiny_models.py --noise    prints how far rounded activations and a F16 cache move the logits

tests/data/tiny/expected.json is a list of
    {"file": "x.gguf",                 beside it
     "tokens": [ids],                  one sequence, fed from position 0
     "positions": [p0, p1, ...],       whose logits are given, ascending
     "logits": "x.logits",             beside it: little-endian F32 (n_positions, n_vocab)
     "max_abs": m}                     max |logit| over those

Attention is sharp (the largest weight of a row is 0.3 to 0.5 in the mean), so errors in rope, masks and scales cannot
hide; norm weights, biases and epsilons are large enough to matter. 200 tokens exceed the sliding window, the original
context and two KV pages of 64. Expected logits of quantized models use their dequantized weights.
Needs: torch, transformers, gguf, numpy (requirements.txt).
"""
import argparse
import json
import math
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from transformers import (Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, OPTConfig,
                          OPTForCausalLM)
from transformers.cache_utils import DynamicCache

import gguf_torch

OUT = Path(__file__).resolve().parent.parent / "data" / "tiny"
N_TOKENS = 200
POSITIONS = [0, 1, 7, 15, 23, 24, 25, 31, 63, 64, 65, 100, 127, 128, 160, 199]

# Pieces of a little SentencePiece vocabulary, so that text commands can use these files as well.
PIECES = ["<unk>", "<s>", "</s>", "\u2581"] + list("etaoinshrdlucmfwypvbgkjqxz.,?!'-") + [
    "th", "he", "in", "er", "an", "re", "on", "at", "en", "nd", "\u2581t", "\u2581a", "\u2581th", "\u2581the",
    "\u2581an", "\u2581and", "ing", "ou", "\u2581s", "\u2581w", "\u2581o", "\u2581of", "\u2581to", "\u2581i",
    "\u2581in", "\u2581h"]

DENSE = dict(n_embd=32, n_ff=64, n_head=4, n_head_kv=2, head_dim=16)
SLIM = dict(n_embd=32, n_ff=64, n_head=2, n_head_kv=1, head_dim=16)
WIDE = dict(n_embd=96, n_ff=160, n_head=6, n_head_kv=2, head_dim=16, n_layer=1)   # multiples of 32, not of 64
MODELS = {
    "llama_plain": dict(arch="llama", type=Q.F32, n_layer=2, bias=True, tied=False, rope="default", **SLIM),
    "llama_linear": dict(arch="llama", type=Q.F16, n_layer=2, bias=False, tied=True, rope="linear", **DENSE),
    "llama_llama3": dict(arch="llama", type=Q.BF16, n_layer=2, bias=True, tied=True, rope="llama3", **DENSE),
    "gemma3_plain": dict(arch="gemma3", type=Q.F16, n_layer=7, rope="default", window=24, **SLIM),
    "gemma3_linear": dict(arch="gemma3", type=Q.Q8_0, n_layer=7, rope="linear", window=32, theta_local=500.0,
                          **SLIM),
    "llama_q4_0": dict(arch="llama", type=Q.Q4_0, bias=True, tied=False, rope="default", **WIDE),
    "llama_q4_1": dict(arch="llama", type=Q.Q4_1, bias=False, tied=True, rope="default", **WIDE),
    "llama_q5_0": dict(arch="llama", type=Q.Q5_0, bias=False, tied=True, rope="default", **WIDE),
    "llama_q5_1": dict(arch="llama", type=Q.Q5_1, bias=False, tied=True, rope="default", **WIDE),
    "llama_q8_0": dict(arch="llama", type=Q.Q8_0, bias=False, tied=True, rope="default", **WIDE),
    # K types need rows of a multiple of 256; the one row that is shorter takes Q5_0, as llama.cpp's own mixtures do.
    "llama_k": dict(arch="llama", type={"attn_q": Q.Q4_K, "attn_k": Q.Q5_K, "attn_v": Q.Q6_K, "attn_output": Q.Q5_0,
                                        "ffn_gate": Q.Q4_K, "ffn_up": Q.Q5_K, "ffn_down": Q.Q6_K, "token_embd": Q.Q6_K},
                    bias=False, tied=True, rope="default", n_embd=256, n_ff=256, n_head=2, n_head_kv=1, head_dim=32,
                    n_layer=1),
    "llama_relu": dict(arch="llama", type=Q.Q8_0, activation="relu", bias=False, tied=True, rope="default",
                       **{**WIDE, "n_layer": 2}),
    "opt_plain": dict(arch="opt", type=Q.F16, n_layer=2, **{**DENSE, "n_head": 2, "n_head_kv": 2}),
    "opt_q8_0": dict(arch="opt", type=Q.Q8_0, trimmed=True, **{**WIDE, "n_head_kv": 6}),
    "llama_mxfp4": dict(arch="llama", type=Q.MXFP4, bias=False, tied=True, rope="default", **WIDE),
    "llama_k2": dict(arch="llama", type={"attn_q": Q.Q2_K, "attn_k": Q.Q3_K, "attn_v": Q.IQ4_XS, "attn_output": Q.IQ4_NL,
                                         "ffn_gate": Q.Q2_K, "ffn_up": Q.IQ4_XS, "ffn_down": Q.Q3_K,
                                         "token_embd": Q.IQ4_NL},
                     bias=False, tied=True, rope="default", n_embd=256, n_ff=256, n_head=2, n_head_kv=1, head_dim=32,
                     n_layer=1),
}
CONTEXT, ORIGINAL_CONTEXT, FACTOR, EPS = 512, 64, 4.0, 1e-2
THETA = {"llama": 10000.0, "gemma3": 100000.0}   # gemma3: of the global layers
# Gains of the random weights, chosen by --noise: attention sharp enough that a wrong base, window or scale moves the
# logits by 2.5e-2 and more, yet 16-bit activations and a F16 cache by less than 5e-4.
QK_GAIN = {"llama": 1.7, "gemma3": 1.3, "opt": 1.7}          # of q and k each, in front of the softmax
EMBEDDING_STD = {"llama": 0.6, "gemma3": 1.0, "opt": 0.6}    # of the scaled embeddings
BRANCH_GAIN = 0.25                               # of what a layer adds to the residual stream
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=ORIGINAL_CONTEXT)


# Random blocks of the types that gguf reads but does not write. Scales are chosen so that weights have mean about 0
# and deviation about `std`.
def pack_k_scales(sc, m):
    """(blocks, 8) 6-bit scales and mins -> (blocks, 12) bytes, as Q4_K and Q5_K store them."""
    out = np.zeros((len(sc), 12), np.uint8)
    out[:, 0:4] = (sc[:, 0:4] & 63) | (sc[:, 4:8] >> 4 << 6)
    out[:, 4:8] = (m[:, 0:4] & 63) | (m[:, 4:8] >> 4 << 6)
    out[:, 8:12] = (sc[:, 4:8] & 15) | ((m[:, 4:8] & 15) << 4)
    return out


def halves(n, value):
    return np.full((n, 1), value, np.float16).view(np.uint8)


def random_k(rng, kind, shape, std):
    n = shape[0] * shape[1] // gguf.GGML_QUANT_SIZES[kind][0]
    some_bytes = lambda k: rng.integers(0, 256, (n, k), dtype=np.uint8)
    if kind == Q.IQ4_NL:
        blocks = [halves(n, std / 69), some_bytes(16)]
    elif kind == Q.IQ4_XS:
        blocks = [halves(n, std / (69 * 18.5)), some_bytes(2 + 4 + 128)]
    elif kind == Q.Q3_K:
        blocks = [some_bytes(32 + 64 + 12), halves(n, std / (2.3 * 18.5))]
    elif kind == Q.Q2_K:
        sc = rng.integers(5, 15, (n, 16))
        m = np.clip(sc + rng.integers(-1, 2, (n, 16)), 0, 15)
        d = std / (1.12 * 9.5)
        blocks = [(sc | m << 4).astype(np.uint8), some_bytes(64), halves(n, d), halves(n, d * 1.5)]
    elif kind == Q.Q6_K:
        scales = (rng.integers(40, 128, (n, 16)) * rng.choice([-1, 1], (n, 16))).astype(np.int8).view(np.uint8)
        blocks = [some_bytes(128), some_bytes(64), scales, halves(n, std / (18.5 * 87))]
    else:
        levels = 15 if kind == Q.Q4_K else 31
        sc = rng.integers(20, 64, (n, 8))
        m = np.clip(np.round(sc * rng.uniform(0.8, 1.2, (n, 8))), 0, 63).astype(np.int64)
        d = std / (42 * (levels + 1) / math.sqrt(12))
        blocks = [halves(n, d), halves(n, d * levels / 2), pack_k_scales(sc.astype(np.uint8), m.astype(np.uint8))]
        blocks += [some_bytes(128)] if kind == Q.Q4_K else [some_bytes(32), some_bytes(128)]
    return np.concatenate(blocks, axis=1).reshape(shape[0], -1)


def transformers_model(s):
    if s["arch"] == "opt":
        model = OPTForCausalLM(OPTConfig(
            vocab_size=len(PIECES), hidden_size=s["n_embd"], ffn_dim=s["n_ff"], word_embed_proj_dim=s["n_embd"],
            num_hidden_layers=s["n_layer"], num_attention_heads=s["n_head"], max_position_embeddings=CONTEXT,
            do_layer_norm_before=True, activation_function="relu", attn_implementation="eager"))
        gguf_torch.set_layer_norm_eps(model, EPS)
        return model
    common = dict(vocab_size=len(PIECES), hidden_size=s["n_embd"], intermediate_size=s["n_ff"],
                  num_hidden_layers=s["n_layer"], num_attention_heads=s["n_head"], num_key_value_heads=s["n_head_kv"],
                  head_dim=s["head_dim"], max_position_embeddings=CONTEXT, rms_norm_eps=EPS,
                  tie_word_embeddings=s.get("tied", True), attn_implementation="eager")
    rope = {"rope_type": s["rope"], "rope_theta": THETA[s["arch"]]}
    if s["rope"] == "linear":
        rope["factor"] = FACTOR
    if s["rope"] == "llama3":
        rope.update(LLAMA3)
    if s["arch"] == "llama":
        config = LlamaConfig(rope_parameters=rope, hidden_act=s.get("activation", "silu"), attention_bias=s["bias"],
                             mlp_bias=s["bias"], **common)
        return LlamaForCausalLM(config)
    local = {"rope_type": "default", "rope_theta": s.get("theta_local", 10000.0)}
    return Gemma3ForCausalLM(Gemma3TextConfig(rope_parameters={"full_attention": rope, "sliding_attention": local},
                                              sliding_window=s["window"], sliding_window_pattern=6,
                                              query_pre_attn_scalar=s["head_dim"], **common))


def deviation(s, name, fan_in):
    """Weights keep the scale of what flows through; llama's q and k are larger (gemma3's are normed)."""
    if "embed_tokens" in name or "embed_positions" in name or "lm_head" in name:
        std = EMBEDDING_STD[s["arch"]]
        return std / math.sqrt(fan_in) if s["arch"] == "gemma3" else std   # gemma3 multiplies by sqrt(n_embd)
    if s["arch"] != "gemma3" and ("q_proj" in name or "k_proj" in name):
        return QK_GAIN[s["arch"]] / math.sqrt(fan_in)
    if s["arch"] != "gemma3" and name.split(".")[-2] in ("o_proj", "down_proj", "out_proj", "fc2"):
        return BRANCH_GAIN / math.sqrt(fan_in)
    return 1 / math.sqrt(fan_in)


def fill(rng, s, model):
    for name, p in model.state_dict().items():
        shape = tuple(p.shape)
        if "norm" in name and name.endswith("weight"):
            mean = QK_GAIN["gemma3"] if "q_norm" in name or "k_norm" in name else 1
            if s["arch"] == "gemma3" and ("post_attention" in name or "post_feedforward" in name):
                mean = BRANCH_GAIN
            w = mean * rng.uniform(0.5, 1.5, shape)
            w = w - 1 if s["arch"] == "gemma3" else w
        elif name.endswith("bias"):
            w = rng.normal(0, 0.3, shape)
        else:
            w = rng.normal(0, deviation(s, name, shape[-1]), shape)
            if "embed_positions" in name and s.get("trimmed"):
                w[:gguf_torch.OPT_POSITION_OFFSET] = 0   # what gguf_torch.load puts back
        p.copy_(torch.from_numpy(w.astype(np.float32)))


def kind_of(s, name):
    """The type in which a tensor stands in the file."""
    stem, what = name.rsplit(".", 1)
    if what == "bias" or stem.endswith("norm"):
        return Q.F32
    return s["type"][stem.split(".")[-1]] if isinstance(s["type"], dict) else s["type"]


def add_tensor(writer, rng, s, name, w):
    kind = kind_of(s, name)
    if kind in (Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K, Q.IQ4_NL, Q.IQ4_XS):
        data = random_k(rng, kind, w.shape, float(w.std()))
    else:
        data = gguf.quants.quantize(np.ascontiguousarray(w), kind)
    writer.add_tensor(name, data, raw_dtype=kind)


def add_metadata(writer, s):
    writer.add_context_length(CONTEXT)
    writer.add_block_count(s["n_layer"])
    writer.add_embedding_length(s["n_embd"])
    writer.add_feed_forward_length(s["n_ff"])
    writer.add_head_count(s["n_head"])
    writer.add_head_count_kv(s["n_head_kv"])
    if s["arch"] == "opt":
        writer.add_layer_norm_eps(EPS)
    else:
        writer.add_layer_norm_rms_eps(EPS)
        writer.add_rope_freq_base(THETA[s["arch"]])
    writer.add_vocab_size(len(PIECES))
    if s["arch"] != "opt":
        writer.add_key_length(s["head_dim"])
        writer.add_value_length(s["head_dim"])
    if "activation" in s:
        writer.add_string("thermocline.activation", s["activation"])
    if s["arch"] == "llama":
        writer.add_rope_dimension_count(s["head_dim"])
    elif s["arch"] == "gemma3":
        writer.add_sliding_window(s["window"])
        if "theta_local" in s:
            writer.add_float32(f"{s['arch']}.rope.freq_base_swa", s["theta_local"])
    if s.get("rope") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(FACTOR)
        writer.add_rope_scaling_orig_ctx_len(ORIGINAL_CONTEXT)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([p.encode() for p in PIECES])
    merged = PIECES.index("th")   # from here on pieces of several characters, the most frequent first
    writer.add_token_scores([0.0] * 3 + [-1000.0] * (merged - 3) + [-float(i) for i in range(len(PIECES) - merged)])
    writer.add_token_types([2, 3, 3] + [1] * (len(PIECES) - 3))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(s["arch"] == "llama")


def llama3_factors(head_dim):
    """What each rotation frequency is divided by (the rule of Llama 3.1, here over ORIGINAL_CONTEXT)."""
    out = []
    for i in range(0, head_dim, 2):
        turns = ORIGINAL_CONTEXT / (2 * math.pi * THETA["llama"] ** (i / head_dim))   # within the original context
        smooth = (turns - LLAMA3["low_freq_factor"]) / (LLAMA3["high_freq_factor"] - LLAMA3["low_freq_factor"])
        smooth = min(max(smooth, 0.0), 1.0)
        out.append(1 / ((1 - smooth) / LLAMA3["factor"] + smooth))
    return np.array(out, np.float32)


def write(rng, name, s):
    model = transformers_model(s).eval()
    fill(rng, s, model)
    path = OUT / f"{name}.gguf"
    writer = gguf.GGUFWriter(path, s["arch"])
    add_metadata(writer, s)
    for hf, p in model.state_dict().items():
        if hf == "lm_head.weight" and s.get("tied", True):
            continue
        ours = gguf_torch.gguf_name(s["arch"], hf)
        if ours == "position_embd.weight" and s.get("trimmed"):
            p = p[gguf_torch.OPT_POSITION_OFFSET:]
        add_tensor(writer, rng, s, ours, gguf_torch.to_gguf(model.config, s["arch"], ours, p.numpy()))
    if s.get("rope") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(s["head_dim"]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    loaded, _ = gguf_torch.load(path)
    check_round_trip(s, model, loaded)
    return path, loaded


def check_round_trip(s, model, loaded):
    """What was read back is what was written, up to the type's rounding; so is rope, though stored differently."""
    for name, p in model.state_dict().items():
        if not isinstance(s["type"], dict):
            error = float((p - loaded.state_dict()[name]).abs().max() / p.abs().max())
            assert error <= {Q.F32: 1e-6, Q.F16: 1e-3, Q.BF16: 4e-3, Q.MXFP4: 0.25}.get(s["type"], 0.15), (name, error)
    if s["arch"] == "opt":
        return
    ropes = [dict(m.model.rotary_emb.named_buffers()) for m in (model, loaded)]
    for key in ropes[0]:
        if "original" not in key:
            assert torch.allclose(ropes[0][key], ropes[1][key], rtol=1e-6), key


def logits_of(model, tokens, **kwargs):
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens]), **kwargs).logits[0].float().numpy()


def sharpness(model, tokens):
    """Mean over layers, heads and rows past the first 16 of the largest attention weight."""
    with torch.no_grad():
        a = model(input_ids=torch.tensor([tokens]), output_attentions=True).attentions
    return float(torch.stack(a)[:, :, :, 16:].max(-1).values.mean())


# Rounded arithmetic, for choosing tolerances.
def round_groups(x, levels):
    g = x.reshape(*x.shape[:-1], -1, 32)
    scale = g.abs().amax(-1, keepdim=True).clamp_min(1e-30) / levels
    return (torch.round(g / scale) * scale).reshape(x.shape)


class HalfCache(DynamicCache):
    """Keys and values rounded to F16."""
    def update(self, k, v, *args, **kwargs):
        return super().update(k.half().float(), v.half().float(), *args, **kwargs)


ROUNDINGS = {"float32": None, "16 bit": lambda x: round_groups(x, 32512), "bf16": lambda x: x.bfloat16().float(),
             "s8": lambda x: round_groups(x, 127)}


def noise(model, tokens):
    exact = logits_of(model.double(), tokens)
    model.float()
    row = []
    for cache in (None, HalfCache):
        for rounding in ROUNDINGS.values():
            hooks = [m.register_forward_pre_hook(lambda m, a: (rounding(a[0]),)) for m in model.modules()
                     if rounding and isinstance(m, torch.nn.Linear)]
            got = logits_of(model, tokens, **({"past_key_values": cache(config=model.config)} if cache else {}))
            for h in hooks:
                h.remove()
            row.append(float(np.abs(got - exact).max() / np.abs(exact).max()))
    return row


def print_noise():
    columns = [k + c for c in ("", ", F16 cache") for k in ROUNDINGS]
    print("| model | sharpness | " + " | ".join(columns) + " |")
    print("|---" * (2 + 2 * len(ROUNDINGS)) + "|")
    for case in json.loads((OUT / "expected.json").read_text()):
        model, _ = gguf_torch.load(OUT / case["file"])
        cells = [f"{sharpness(model, case['tokens']):.2f}"] + [f"{e:.1e}" for e in noise(model, case["tokens"])]
        print(f"| {case['file'].removesuffix('.gguf')} | " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--noise", action="store_true")
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    torch.set_grad_enabled(False)
    if args.noise:
        print_noise()
        return
    cases = []
    for seed, (name, s) in enumerate(MODELS.items()):
        rng = np.random.default_rng(20250 + seed)
        path, model = write(rng, name, s)
        tokens = [1] + rng.integers(3, len(PIECES), N_TOKENS - 1).tolist()
        logits = logits_of(model, tokens)[POSITIONS].astype("<f4")
        assert np.isfinite(logits).all()
        (OUT / f"{name}.logits").write_bytes(logits.tobytes())
        cases.append({"file": path.name, "tokens": tokens, "positions": POSITIONS, "logits": f"{name}.logits",
                      "max_abs": float(np.abs(logits).max())})
    (OUT / "expected.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


if __name__ == "__main__":
    main()
