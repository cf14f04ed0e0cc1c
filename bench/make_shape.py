#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a GGUF model of a given shape with random weights, for benches only (development only).

usage: bench/make_shape.py 300m|1b VOCAB.gguf OUT.gguf [--quantize LLAMA_QUANTIZE TYPE ...]

The tokenizer is that of VOCAB.gguf, a llama model such as SmolLM2. With --quantize, OUT-TYPE.gguf is made for each
TYPE by llama.cpp's llama-quantize, with 32 rows of a matrix repeated: speed does not depend on the values.
Needs the packages gguf and numpy.
"""
import argparse
import os
import subprocess

import gguf
import numpy as np

SHAPES = {  # width, layers, heads, kv heads, ffn
    "300m": (1024, 16, 16, 4, 4096),
    "1b": (2048, 16, 32, 8, 8192),
}


def matrix(rng, n_out, n_in):
    some = (rng.standard_normal((32, n_in)) * n_in**-0.5).astype(np.float16)
    return np.tile(some, (-(-n_out // 32), 1))[:n_out]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("shape", choices=SHAPES)
    p.add_argument("vocab")
    p.add_argument("out")
    p.add_argument("--quantize", nargs="+", default=[])
    a = p.parse_args()
    width, layers, heads, kv_heads, ffn = SHAPES[a.shape]
    w, rng = gguf.GGUFWriter(a.out, "llama"), np.random.default_rng(1)
    w.add_name(f"random {a.shape}")
    w.add_context_length(8192)
    w.add_embedding_length(width)
    w.add_block_count(layers)
    w.add_feed_forward_length(ffn)
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(1e5)
    w.add_rope_dimension_count(width // heads)
    for key, field in gguf.GGUFReader(a.vocab).fields.items():
        if not key.startswith("tokenizer."):
            continue
        kind = field.types[0]
        if kind == gguf.GGUFValueType.ARRAY:
            w.add_key_value(key, field.contents(), kind, field.types[-1])
        else:
            w.add_key_value(key, field.contents(), kind)
        if key == "tokenizer.ggml.tokens":
            n_vocab = len(field.contents())
    w.add_vocab_size(n_vocab)
    one = np.ones(width, np.float32)
    w.add_tensor("token_embd.weight", matrix(rng, n_vocab, width))
    w.add_tensor("output_norm.weight", one)
    sizes = {"attn_q": (width, width), "attn_k": (kv_heads * width // heads, width),
             "attn_v": (kv_heads * width // heads, width), "attn_output": (width, width),
             "ffn_gate": (ffn, width), "ffn_up": (ffn, width), "ffn_down": (width, ffn)}
    for i in range(layers):
        w.add_tensor(f"blk.{i}.attn_norm.weight", one)
        w.add_tensor(f"blk.{i}.ffn_norm.weight", one)
        for name, (n_out, n_in) in sizes.items():
            w.add_tensor(f"blk.{i}.{name}.weight", matrix(rng, n_out, n_in))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    out = os.path.abspath(a.out) # a name such as 1b-Q4_0.gguf would be read as the type 1
    for kind in a.quantize[1:]:
        subprocess.run([a.quantize[0], out, out.replace(".gguf", f"-{kind}.gguf"), kind], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


main()
