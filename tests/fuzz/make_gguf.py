#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes small models of newer architectures and types into corpus/fuzz_gguf, for the fuzzer to begin with.

usage: make_gguf.py          (gguf 0.19.0; random weights, ours, Apache-2.0)
"""
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quantize

T = gguf.GGMLQuantizationType
CORPUS = Path(__file__).resolve().parent / "corpus" / "fuzz_gguf"
rng = np.random.default_rng(1)


def write(name, arch, embd, ff, layers, types, keys):
    heads, kv, dim, vocab = 2, 1, 16, 24
    w = gguf.GGUFWriter(str(CORPUS / f"{name}.gguf"), arch)
    w.add_context_length(32)
    w.add_embedding_length(embd)
    w.add_block_count(layers)
    w.add_feed_forward_length(ff)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_key_length(dim)
    w.add_value_length(dim)
    w.add_layer_norm_rms_eps(1e-5)
    keys(w)
    w.add_tokenizer_model("llama")
    w.add_token_list(["<unk>", "<s>", "</s>"] + [chr(97 + i) for i in range(vocab - 3)])
    w.add_token_scores([0.0] * vocab)
    w.add_token_types([2, 3, 3] + [1] * (vocab - 3))

    def put(tensor, rows, cols=None):
        if cols is None:
            return w.add_tensor(tensor, (1 + 0.1 * rng.standard_normal(rows)).astype(np.float32))
        kind = types.get(tensor.split(".")[-2], T.F16)
        block, size = GGML_QUANT_SIZES[kind]
        if block == 256:  # codes at random, float16 numbers that are small
            raw = rng.integers(0, 256, (rows, cols // block, size), dtype=np.uint8)
            for at in [208] if kind == T.Q6_K else [0, 2]:
                raw[:, :, at:at + 2] = np.frombuffer(np.float16(1e-3).tobytes(), np.uint8)
            return w.add_tensor(tensor, raw.reshape(rows, -1), raw_dtype=kind)
        x = (0.1 * rng.standard_normal((rows, cols))).astype(np.float32)
        if kind == T.IQ4_NL:
            raw = rng.integers(0, 256, (rows, cols // block, size), dtype=np.uint8)
            raw[:, :, :2] = np.frombuffer(np.float16(1e-3).tobytes(), np.uint8)
            return w.add_tensor(tensor, raw.reshape(rows, -1), raw_dtype=kind)
        w.add_tensor(tensor, quantize(x, kind), raw_dtype=kind)

    put("token_embd.weight", vocab, embd)
    put("output_norm.weight", embd)
    for i in range(layers):
        b = f"blk.{i}."
        put(b + "attn_norm.weight", embd)
        put(b + "ffn_norm.weight", embd)
        if arch == "phi3":
            put(b + "attn_qkv.weight", (heads + 2 * kv) * dim, embd)
            put(b + "ffn_up.weight", 2 * ff, embd)
        else:
            put(b + "attn_q.weight", heads * dim, embd)
            put(b + "attn_k.weight", kv * dim, embd)
            put(b + "attn_v.weight", kv * dim, embd)
            put(b + "ffn_gate.weight", ff, embd)
            put(b + "ffn_up.weight", ff, embd)
        put(b + "attn_output.weight", embd, heads * dim)
        put(b + "ffn_down.weight", embd, ff)
        if arch == "gemma3":
            for part in ("attn_q_norm", "attn_k_norm"):
                put(b + part + ".weight", dim)
            for part in ("post_attention_norm", "post_ffw_norm"):
                put(b + part + ".weight", embd)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def phi3(w):
    w.add_sliding_window(6)
    w.add_rope_dimension_count(12)
    w.add_rope_scaling_orig_ctx_len(20)
    w.add_rope_scaling_attn_factors(1.2)
    w.add_tensor("rope_factors_short.weight", np.ones(6, np.float32))
    w.add_tensor("rope_factors_long.weight", np.full(6, 4, np.float32))


write("types", "llama", 256, 32, 1,
      {"token_embd": T.Q6_K, "attn_q": T.Q4_K, "attn_k": T.Q5_K, "attn_v": T.Q6_K, "attn_output": T.Q5_0,
       "ffn_gate": T.IQ4_NL, "ffn_up": T.Q5_1, "ffn_down": T.Q4_1}, lambda w: None)
write("gemma3", "gemma3", 16, 16, 6, {}, lambda w: w.add_sliding_window(5))
write("smollm3", "smollm3", 16, 16, 4, {}, lambda w: None)
write("phi3", "phi3", 16, 16, 2, {}, phi3)
