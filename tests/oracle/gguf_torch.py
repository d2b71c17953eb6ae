"""GGUF <-> transformers: the maps between tensor names and configurations that the oracles share.

A GGUF file is turned into a transformers model in float32 with the weights that the `gguf` package dequantizes.
Needs: torch, transformers, gguf, numpy.
"""
import gguf
import numpy as np
import torch
from transformers import (Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, OPTConfig,
                          OPTForCausalLM)

LAYER_NAMES = {
    "llama": {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    },
    "gemma3": {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    "opt": {
        "attn_norm": "self_attn_layer_norm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.out_proj",
        "ffn_norm": "final_layer_norm",
        "ffn_up": "fc1",
        "ffn_down": "fc2",
    },
}
GLOBAL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
OPT_GLOBAL_NAMES = {"token_embd": "model.decoder.embed_tokens", "position_embd": "model.decoder.embed_positions",
                    "output_norm": "model.decoder.final_layer_norm", "output": "lm_head"}
OPT_POSITION_OFFSET = 2   # rows of embed_positions in front of position 0's; converters may leave them out


def global_names(arch):
    return OPT_GLOBAL_NAMES if arch == "opt" else GLOBAL_NAMES


def layers_of(arch):
    return "model.decoder.layers" if arch == "opt" else "model.layers"


def hf_name(arch, name):
    """"blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"."""
    stem, kind = name.rsplit(".", 1)
    if stem in global_names(arch):
        return f"{global_names(arch)[stem]}.{kind}"
    _, layer, part = stem.split(".")
    return f"{layers_of(arch)}.{layer}.{LAYER_NAMES[arch][part]}.{kind}"


def gguf_name(arch, name):
    """The inverse of hf_name."""
    stem, kind = name.rsplit(".", 1)
    for ours, theirs in global_names(arch).items():
        if stem == theirs:
            return f"{ours}.{kind}"
    layer, part = stem.removeprefix(layers_of(arch) + ".").split(".", 1)
    ours = {v: k for k, v in LAYER_NAMES[arch].items()}[part]
    return f"blk.{layer}.{ours}.{kind}"


def permute(w, n_head):
    """Reorders rows: transformers rotates the dims (i, i + d/2) of a head, llama's GGUF the dims (2i, 2i + 1)."""
    return w.reshape(n_head, 2, w.shape[0] // n_head // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def unpermute(w, n_head):
    """The inverse of permute."""
    return w.reshape(n_head, w.shape[0] // n_head // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def to_gguf(config, arch, name, w):
    """The array that stands in the file for the parameter `name` (its GGUF name) of a transformers model."""
    if arch == "llama" and ".attn_q." in name:
        return permute(w, config.num_attention_heads)
    if arch == "llama" and ".attn_k." in name:
        return permute(w, config.num_key_value_heads)
    if arch == "gemma3" and name.endswith("norm.weight"):
        return w + np.float32(1)   # transformers multiplies by 1 + w, GGUF stores the factor itself
    return w


def from_gguf(config, arch, name, w):
    if arch == "llama" and ".attn_q." in name:
        return unpermute(w, config.num_attention_heads)
    if arch == "llama" and ".attn_k." in name:
        return unpermute(w, config.num_key_value_heads)
    if arch == "gemma3" and name.endswith("norm.weight"):
        return w - np.float32(1)
    return w


def set_layer_norm_eps(model, eps):
    """OPTConfig knows no epsilon: its models have torch's."""
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = eps


class Metadata:
    def __init__(self, reader):
        self.fields = reader.fields
        self.arch = self.get("general.architecture")

    def get(self, key, default=None):
        key = key.replace("{arch}", getattr(self, "arch", ""))
        return self.fields[key].contents() if key in self.fields else default


def rope_scaling(meta, rope_freqs, theta):
    kind = meta.get("{arch}.rope.scaling.type", "none")
    if rope_freqs is not None:
        return {"rope_type": "default", "rope_theta": theta}   # set_rope_factors does the rest
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(meta.get("{arch}.rope.scaling.factor")), "rope_theta": theta}
    assert kind == "none", kind
    return {"rope_type": "default", "rope_theta": theta}


def set_rope_factors(model, factors):
    """rope_freqs.weight divides the frequencies (llama 3)."""
    rope = model.model.rotary_emb
    rope.inv_freq = rope.inv_freq / torch.from_numpy(np.array(factors, dtype=np.float32))


def config_of(meta, tensors):
    """The transformers configuration of a GGUF file; gemma3's activation and period of 6 come with the architecture."""
    a = "{arch}."
    n_embd, n_head = int(meta.get(a + "embedding_length")), int(meta.get(a + "attention.head_count"))
    if meta.arch == "opt":
        return OPTConfig(vocab_size=tensors["token_embd.weight"].shape[0], hidden_size=n_embd,
                         ffn_dim=int(meta.get(a + "feed_forward_length")), word_embed_proj_dim=n_embd,
                         num_hidden_layers=int(meta.get(a + "block_count")), num_attention_heads=n_head,
                         max_position_embeddings=int(meta.get(a + "context_length")), do_layer_norm_before=True,
                         activation_function="relu", tie_word_embeddings="output.weight" not in tensors,
                         attn_implementation="eager")
    head_dim = int(meta.get(a + "attention.key_length", n_embd // n_head))
    theta = float(meta.get(a + "rope.freq_base", 10000.0))
    scaling = rope_scaling(meta, tensors.get("rope_freqs.weight"), theta)
    common = dict(
        vocab_size=tensors["token_embd.weight"].shape[0],
        hidden_size=n_embd,
        intermediate_size=int(meta.get(a + "feed_forward_length")),
        num_hidden_layers=int(meta.get(a + "block_count")),
        num_attention_heads=n_head,
        num_key_value_heads=int(meta.get(a + "attention.head_count_kv", n_head)),
        head_dim=head_dim,
        max_position_embeddings=int(meta.get(a + "context_length")),
        rms_norm_eps=float(meta.get(a + "attention.layer_norm_rms_epsilon")),
        tie_word_embeddings="output.weight" not in tensors,
        attn_implementation="eager",
    )
    if meta.arch == "llama":
        return LlamaConfig(rope_parameters=scaling, hidden_act=meta.get("thermocline.activation", "silu"),
                           attention_bias="blk.0.attn_q.bias" in tensors,
                           mlp_bias="blk.0.ffn_up.bias" in tensors, **common)
    assert meta.arch == "gemma3", meta.arch
    local = {"rope_type": "default", "rope_theta": float(meta.get(a + "rope.freq_base_swa", 10000.0))}
    return Gemma3TextConfig(rope_parameters={"full_attention": scaling, "sliding_attention": local},
                            hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=head_dim,
                            sliding_window=int(meta.get(a + "attention.sliding_window")), sliding_window_pattern=6,
                            **common)


def load(path):
    """The float32 transformers model of a GGUF file, in eval mode, and the file's Metadata."""
    reader = gguf.GGUFReader(path)
    meta = Metadata(reader)
    tensors = {t.name: np.array(gguf.quants.dequantize(t.data, t.tensor_type), np.float32) for t in reader.tensors}
    config = config_of(meta, tensors)
    if meta.arch == "opt" and len(tensors["position_embd.weight"]) == config.max_position_embeddings:
        unused = np.zeros((OPT_POSITION_OFFSET, config.hidden_size), np.float32)
        tensors["position_embd.weight"] = np.concatenate([unused, tensors["position_embd.weight"]])
    classes = {"llama": LlamaForCausalLM, "gemma3": Gemma3ForCausalLM, "opt": OPTForCausalLM}
    model = classes[meta.arch](config).float().eval()
    if meta.arch == "opt":
        set_layer_norm_eps(model, float(meta.get("{arch}.attention.layer_norm_epsilon")))
    state = {}
    for name, w in tensors.items():
        if name != "rope_freqs.weight":
            w = np.ascontiguousarray(from_gguf(config, meta.arch, name, w))
            state[hf_name(meta.arch, name)] = torch.from_numpy(w)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state[hf_name(meta.arch, "token_embd.weight")]
    model.load_state_dict(state, strict=True)
    if "rope_freqs.weight" in tensors:
        set_rope_factors(model, tensors["rope_freqs.weight"])
    return model, meta
