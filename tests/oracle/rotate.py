"""A llama GGUF file whose hidden state is rotated by a random orthogonal matrix, in F16.

    python tests/oracle/rotate.py SmolLM2-135M-Instruct.Q4_1.gguf rotated.gguf

The function stays the same: the norm weights are folded into the products behind them, after which RMS norm commutes
with a rotation; the embedding and what adds to the hidden state are rotated, what reads it is rotated back. The head
is no longer the embedding, because only one of them has the final norm folded in. What this is for: a file that was
made from a 4-bit one lies on that one's grid and quantizes to it without loss; a rotated one lies on no grid.
Needs: gguf, numpy.
"""
import argparse

import gguf
import numpy as np


def rotation(n, seed):
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return q * np.sign(np.diag(r))   # uniform over the orthogonal matrices


def rotated(tensors):
    """Name -> float array of the rotated model. Rows of an array are outputs."""
    hidden = tensors["output_norm.weight"].size
    R = rotation(hidden, seed=576)
    out = {"token_embd.weight": tensors["token_embd.weight"] @ R}
    head = tensors.get("output.weight", tensors["token_embd.weight"])
    out["output.weight"] = (head * tensors["output_norm.weight"]) @ R
    norm_of = {"attn_q": "attn_norm", "attn_k": "attn_norm", "attn_v": "attn_norm", "ffn_gate": "ffn_norm",
               "ffn_up": "ffn_norm"}
    for name, w in tensors.items():
        stem = name.removesuffix(".weight")
        layer, _, part = stem.rpartition(".")
        if stem.endswith("norm"):
            out[name] = np.ones_like(w)
        elif part in norm_of:
            out[name] = (w * tensors[f"{layer}.{norm_of[part]}.weight"]) @ R
        elif part in ("attn_output", "ffn_down"):
            out[name] = R.T @ w
        elif name not in out:
            raise SystemExit(f"{name}: not known to this script")
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source")
    parser.add_argument("target")
    args = parser.parse_args()
    reader = gguf.GGUFReader(args.source)
    assert reader.fields["general.architecture"].contents() == "llama"
    writer = gguf.GGUFWriter(args.target, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type",
                                              "general.quantization_version"):
            continue
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}
    for name, w in rotated(tensors).items():
        writer.add_tensor(name, w.astype(np.float32 if w.ndim == 1 else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
