#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Random blocks of every quantised type and what gguf's dequantize makes of them: types.txt.

    make_types.py > tests/golden/types.txt
"""
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize

SHAPES = {  # type: values, bytes, where its float16 numbers are
    T.Q8_0: (32, 34, [0]), T.Q4_0: (32, 18, [0]), T.Q4_1: (32, 20, [0, 2]), T.Q5_0: (32, 22, [0]),
    T.Q5_1: (32, 24, [0, 2]), T.IQ4_NL: (32, 18, [0]), T.Q4_K: (256, 144, [0, 2]),
    T.Q5_K: (256, 176, [0, 2]), T.Q6_K: (256, 210, [208]),
}
rng = np.random.default_rng(20261126)
for t, (values, size, halves) in SHAPES.items():
    for k in range(2 if values == 256 else 4):
        block = rng.integers(0, 256, size, dtype=np.uint8)
        for at in halves:  # the last one subnormal
            h = np.float16(rng.normal() * (1e-6 if k % 2 else 0.05))
            block[at:at + 2] = np.frombuffer(h.tobytes(), np.uint8)
        x = dequantize(block[None, :], t).astype("<f4").view("<u4").reshape(-1)
        assert x.size == values
        print(t.name, block.tobytes().hex())
        for i in range(0, values, 8):
            print(" ".join(f"{v:08x}" for v in x[i:i + 8]))
