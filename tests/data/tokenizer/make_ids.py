#!/usr/bin/env python3
"""Writes what tokenizer_models_test.cc compares with: 10,000 varied strings, and for each model the hash of the ids that
Hugging Face `tokenizers`, built from the model's own vocabulary, gives each string.

    make_ids.py SMOLLM2.gguf GEMMA3.gguf         needs gguf and tokenizers, see tests/oracle/requirements.txt

strings.bin: for each string u16 length (little-endian), UTF-8 bytes.  *.hash: for each string u32 FNV-1a over its ids,
each as four little-endian bytes.
"""
import pathlib
import struct
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "oracle"))
import tokenizer_strings  # noqa: E402
import tokenizers_hf  # noqa: E402

COUNT, SEED = 10_000, 3


def hash_of(ids):
    value = 0x811C9DC5
    for byte in struct.pack(f"<{len(ids)}I", *ids):
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def main():
    texts = tokenizer_strings.strings(COUNT, SEED)
    data = [text.encode() for text in texts]
    (HERE / "strings.bin").write_bytes(b"".join(struct.pack("<H", len(text)) + text for text in data))
    for name, path in zip(["smollm2", "gemma3"], sys.argv[1:], strict=True):
        tokenizer = tokenizers_hf.load(path)
        ids = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
        (HERE / f"{name}.hash").write_bytes(struct.pack(f"<{COUNT}I", *map(hash_of, ids)))
        print(f"{name}: {COUNT} strings, {sum(map(len, ids))} ids")


if __name__ == "__main__":
    main()
