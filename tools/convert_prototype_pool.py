#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Development only: turns a prototype pool trained with PyTorch into a crayon pool file.

usage: convert_prototype_pool.py FOLDER OUTPUT.gguf (--base MODEL.gguf | --base-hash HEX)
                                 [--heads 9] [--kv-heads 3] [--f32]

FOLDER holds pool-1.safetensors, pool-2.safetensors, index.safetensors and tasks.json:
Aqkv [L, 3r, E], Ao [L, r, E], Agu [L, 2r, E], Ad [L, r, F]; Bq ... Bd [L, N*r, d_out] where row
n*r + j is column j of B_n; delta = 2 * sum_n w_n (A x) B_n. alpha [T, N], mu_q [Q], proto_q [T, Q].
q and k are in Hugging Face row order there and in GGUF `llama` order here. The pool gets no middle
view. crayon.pool.base_hash is what `crayon info` prints for the base model.
"""
import argparse
import hashlib
import json
import os

import gguf
import numpy as np
from safetensors.numpy import load_file

SCALE = 2.0  # of the prototype; alpha / rank here
HASH_SAMPLE = 4096
LINEARS = {"attn_q": ("Aqkv", 0, "Bq"), "attn_k": ("Aqkv", 1, "Bk"), "attn_v": ("Aqkv", 2, "Bv"),
           "attn_output": ("Ao", 0, "Bo"), "ffn_gate": ("Agu", 0, "Bg"), "ffn_up": ("Agu", 1, "Bu"),
           "ffn_down": ("Ad", 0, "Bd")}


def model_hash(path):
    """cr_model_hash: SHA-256 of the header and of both ends of every tensor."""
    reader = gguf.GGUFReader(path)
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    s = hashlib.sha256(raw[:reader.data_offset].tobytes())
    for t in reader.tensors:
        data = raw[t.data_offset:t.data_offset + t.n_bytes]
        if len(data) <= 2 * HASH_SAMPLE:
            s.update(data.tobytes())
        else:
            s.update(data[:HASH_SAMPLE].tobytes())
            s.update(data[-HASH_SAMPLE:].tobytes())
    return s.hexdigest()


def gguf_rows(x, heads):
    """First axis from Hugging Face order (half, i) to GGUF order (i, half) inside each head."""
    d = x.shape[0] // heads
    return x.reshape(heads, 2, d // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("folder")
    p.add_argument("output")
    p.add_argument("--base")
    p.add_argument("--base-hash")
    p.add_argument("--heads", type=int, default=9)
    p.add_argument("--kv-heads", type=int, default=3)
    p.add_argument("--f32", action="store_true", help="float32 adapters instead of float16")
    args = p.parse_args()
    if not args.base_hash and not args.base:
        p.error("give --base or --base-hash")
    base_hash = args.base_hash or model_hash(args.base)

    pool = {}
    for name in ("pool-1.safetensors", "pool-2.safetensors"):
        pool.update(load_file(os.path.join(args.folder, name)))
    index = load_file(os.path.join(args.folder, "index.safetensors"))
    tasks = json.load(open(os.path.join(args.folder, "tasks.json")))
    weights = index["alpha"].astype(np.float32)  # [T, N]
    n_tasks, n = weights.shape
    rank = pool["Bq"].shape[1] // n
    assert len(tasks) == n_tasks, (len(tasks), n_tasks)

    w = gguf.GGUFWriter(args.output, "llama")
    w.add_type("crayon.pool")
    w.add_name("prototype pool")
    w.add_uint32("crayon.pool.version", 1)
    w.add_string("crayon.pool.base_hash", base_hash)
    w.add_string("crayon.pool.form", "shared")
    w.add_string("crayon.pool.kind", "library")
    w.add_uint32("crayon.pool.n", n)
    w.add_uint32("crayon.pool.rank", rank)
    w.add_float32("crayon.pool.alpha", SCALE * rank)
    w.add_array("crayon.pool.tasks", tasks)
    w.add_string("crayon.pool.command", "tools/convert_prototype_pool.py")

    kind = np.float32 if args.f32 else np.float16
    for layer in range(pool["Bq"].shape[0]):
        for name, (a_name, part, b_name) in LINEARS.items():
            a = pool[a_name][layer, part * rank:(part + 1) * rank]  # [r, n_in]
            b = pool[b_name][layer].reshape(n, rank, -1).swapaxes(1, 2)  # [N, n_out, r]
            if name in ("attn_q", "attn_k"):
                heads = args.heads if name == "attn_q" else args.kv_heads
                b = np.stack([gguf_rows(one, heads) for one in b])
            w.add_tensor(f"blk.{layer}.{name}.weight.lora_a", np.ascontiguousarray(a, kind))
            w.add_tensor(f"blk.{layer}.{name}.weight.lora_b", np.ascontiguousarray(b, kind))

    mean = gguf_rows(index["mu_q"].astype(np.float32), args.heads)
    proto = index["proto_q"].astype(np.float32)
    proto = np.stack([gguf_rows(one, args.heads) for one in proto])
    proto /= np.linalg.norm(proto, axis=1, keepdims=True)
    w.add_tensor("index.weights", np.ascontiguousarray(weights))
    w.add_tensor("index.qx.mean", np.ascontiguousarray(mean))
    w.add_tensor("index.qx.proto", np.ascontiguousarray(proto))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    print(f"{args.output}: {n_tasks} tasks, N = {n}, rank {rank}, base {base_hash}")


if __name__ == "__main__":
    main()
