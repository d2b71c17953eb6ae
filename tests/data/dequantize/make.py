#!/usr/bin/env python3
"""Makes dequantize.bin: blocks of every weight type and the numbers the `gguf` package makes of them.

Run with gguf==0.19.0 and numpy installed:  python make.py
The file is a sequence of records, little-endian: u32 ggml type id | u32 n weights | the blocks | n float32.
Blocks are random bytes, so that every bit of a layout counts; scales are random halves of every finite size,
subnormal ones and zero among them.
"""

import pathlib
import struct

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize

# Bytes at which a block holds halves: d, dmin or m.
HALVES = {
    Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0],
    Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
    Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.IQ4_NL: [0], Type.IQ4_XS: [0], Type.MXFP4: [],
}
FLOATS = [Type.F32, Type.F16, Type.BF16]


def main():
    random = np.random.default_rng(20240501)
    out = b""
    for kind in FLOATS + list(HALVES):
        block, block_bytes = GGML_QUANT_SIZES[kind]
        n = 64 if kind in FLOATS else 512 if block == 256 else 192
        if kind is Type.F32:
            data = random.standard_normal(n).astype(np.float32).view(np.uint8)
        elif kind in FLOATS:
            bits = random.integers(0, 1 << 16, n).astype(np.uint16)
            exponent = 0x7C00 if kind is Type.F16 else 0x7F80
            bits[(bits & exponent) == exponent] &= ~np.uint16(0x4000)  # no NaN: it equals nothing
            bits[:4] = [0, 0x8000, 1, 0x8001]  # zeros and the smallest subnormals
            data = bits.view(np.uint8)
        else:
            rows = random.integers(0, 256, (n // block, block_bytes)).astype(np.uint8)
            for at in HALVES[kind]:
                scales = random.standard_normal(len(rows)) * 2.0 ** random.integers(-20, 4, len(rows))
                scales[0] = 3e-7  # subnormal
                if at == HALVES[kind][0] and len(rows) > 4:
                    scales[1] = 0
                rows[:, at:at + 2] = scales.astype(np.float16).view(np.uint8).reshape(-1, 2)
            if kind is Type.MXFP4:
                rows[:, 0] = [0, 1, 2, 3, 127, 251][:len(rows)]  # exponents: the first two make subnormal scales
            data = rows.reshape(-1)
        expected = dequantize(data, kind).astype(np.float32).reshape(-1)
        assert expected.size == n and np.isfinite(expected).all()
        out += struct.pack("<II", int(kind), n) + data.tobytes() + expected.tobytes()
    (pathlib.Path(__file__).parent / "dequantize.bin").write_bytes(out)


if __name__ == "__main__":
    main()
