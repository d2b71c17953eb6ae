"""What the tests of the program share: how it is started, and models that say what is known.

The models are made here: their layers add nothing, and the output head names for each token the one that follows it.
A test file is started with the program's path as its first argument.
"""
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = sys.argv.pop(1) if len(sys.argv) > 1 else "thermocline"
U32, F32, STRING, ARRAY, I32 = 4, 6, 8, 9, 5
N_EMBD = 288   # one dimension for each token, and a multiple of 32
PATIENCE = 300  # seconds; --roofline reads memory many times over, and a sanitizer is slow at it


def byte_tokens():
    """GPT-2's way to write bytes as characters."""
    printable = [b for b in range(256) if 0x20 < b < 0x7F or (b > 0xA0 and b != 0xAD)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


TOKENS = byte_tokens() + ["<|im_start|>", "<|im_end|>", "qx"]   # the last one because a vocabulary needs a merge
START, END = 256, 257


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def kv(key, kind, value):
    head = text(key) + struct.pack("<I", kind)
    if kind == STRING:
        return head + text(value)
    if kind == ARRAY:
        element, values = value
        body = b"".join(text(v) if element == STRING else struct.pack("<i", v) for v in values)
        return head + struct.pack("<IQ", element, len(values)) + body
    return head + struct.pack({U32: "<I", F32: "<f"}[kind], value)


def write_model(path, follows=None, arch="llama", template=True, extra=b"", n_extra=0):
    """`follows`: token -> the one that comes next; None: a vocabulary alone."""
    meta = [
        kv("general.architecture", STRING, arch),
        kv("tokenizer.ggml.model", STRING, "gpt2"), kv("tokenizer.ggml.pre", STRING, "gpt-2"),
        kv("tokenizer.ggml.tokens", ARRAY, (STRING, TOKENS)),
        kv("tokenizer.ggml.token_type", ARRAY, (I32, [1] * 256 + [3, 3, 1])),
        kv("tokenizer.ggml.merges", ARRAY, (STRING, ["q x"])),
        kv("tokenizer.ggml.eos_token_id", U32, END),
    ]
    if template:
        meta.append(kv("tokenizer.chat_template", STRING,
                       "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
                       "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
                       "{% endif %}"))
    tensors = []
    if follows is not None:
        for key, value in {"block_count": 1, "embedding_length": N_EMBD, "feed_forward_length": 32,
                           "context_length": 512, "attention.head_count": 9, "attention.head_count_kv": 9}.items():
            meta.append(kv(f"{arch}.{key}", U32, value))
        meta.append(kv(f"{arch}.attention.layer_norm_rms_epsilon", F32, 1e-5))
        zeros = lambda *ne: (ne, bytes(4 * ne[0] * (ne[1] if len(ne) > 1 else 1)))
        ones = ((N_EMBD,), struct.pack("<f", 1) * N_EMBD)

        def rows(columns):
            data = bytearray(4 * N_EMBD * len(TOKENS))
            for row, column in columns:
                struct.pack_into("<f", data, 4 * (N_EMBD * row + column), 1)
            return ((N_EMBD, len(TOKENS)), bytes(data))

        tensors = [("token_embd.weight", rows((t, t) for t in range(len(TOKENS)))),
                   ("output.weight", rows((b, a) for a, b in follows.items())), ("output_norm.weight", ones),
                   ("blk.0.attn_norm.weight", ones), ("blk.0.ffn_norm.weight", ones)]
        tensors += [(f"blk.0.attn_{x}.weight", zeros(N_EMBD, N_EMBD)) for x in ("q", "k", "v", "output")]
        tensors += [(f"blk.0.ffn_{x}.weight", zeros(N_EMBD, 32)) for x in ("gate", "up")]
        tensors.append(("blk.0.ffn_down.weight", zeros(32, N_EMBD)))
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta) + n_extra) + b"".join(meta) + extra
    offset = 0
    for name, (ne, data) in tensors:
        out += text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, 0, offset)
        offset += (len(data) + 31) // 32 * 32
    out += bytes(-len(out) % 32)
    for _, (_, data) in tensors:
        out += data + bytes(-len(data) % 32)
    path.write_bytes(out)


def chain(*texts):
    """Tokens that follow each other: of each text, and its last one at the end of the turn unless it is a loop."""
    follows = {}
    for ids in texts:
        follows.update(zip(ids, ids[1:]))
    return follows


FOLDER = tempfile.TemporaryDirectory()
HERE = Path(FOLDER.name)
PARIS, LOOP, VOCABULARY = HERE / "paris.gguf", HERE / "loop.gguf", HERE / "vocabulary.gguf"
STRANGER, PLAIN = HERE / "stranger.gguf", HERE / "plain.gguf"
TERMINATED = list(b"\nParis.") + [END]
write_model(PARIS, chain(TERMINATED, list(b"?A") + [END], list(b"0123456789") + [END]))
write_model(LOOP, chain(list(b"\n0123456789\n")))
write_model(PLAIN, chain(TERMINATED), template=False)
write_model(VOCABULARY)
write_model(STRANGER, arch="mamba\x1b[31m", extra=kv("general.evil", STRING, "a\x1b]0;title\x07b\nc"), n_extra=1)
ENVIRONMENT = dict(os.environ, XDG_CACHE_HOME=str(HERE / "cache"), TERM="xterm", PIP_NO_INDEX="1", PIP_FIND_LINKS="")


def run(*args, stdin=b"", **more):
    return subprocess.run([PROGRAM, *map(str, args)], input=stdin, capture_output=True, timeout=PATIENCE,
                          env=ENVIRONMENT, **more)
