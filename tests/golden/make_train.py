#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes train-NAME.gguf: LoRA gradients and ten training losses by transformers and PEFT.

usage: make_train.py [NAME... | --check MODEL.gguf]

README.md beside this file describes the format. --check writes train-check.gguf for another model into the
current folder instead (large: not for the repository).
"""
import math
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from make_models import DATA, HERE, reference, unpermute

RANK, ALPHA, STEPS, LR, WARM_UP, LR_END, CLIP = 2, 4.0, 10, 5e-3, 0.2, 0.05, 1.0
PROMPTS, ANSWERS = [5, 9, 12, 3, 7, 20], [1, 3, 2, 4, 1, 2]
LINEARS = [("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v"), ("o_proj", "attn_output"),
           ("gate_proj", "ffn_gate"), ("up_proj", "ffn_up"), ("down_proj", "ffn_down")]


def start_values(k, n, bound):
    """The numbers that test_train_golden.c starts from too."""
    i = np.arange(n, dtype=np.int64)
    return (bound * (((i * 7919 + k * 104729 + 13) % 2003) / 1001.0 - 1)).astype(np.float32)


def permute(w, n_heads):
    """The inverse of unpermute."""
    return w.reshape(n_heads, 2, w.shape[0] // n_heads // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def pairs(model):
    for layer, block in enumerate(model.base_model.model.model.layers):
        for k, (theirs, ours) in enumerate(LINEARS):
            part = block.self_attn if k < 4 else block.mlp
            lora = getattr(part, theirs)
            yield layer, k, f"blk.{layer}.{ours}.weight", lora.lora_A["default"].weight, lora.lora_B["default"].weight


def make(path, out):
    base = reference(path)
    config = base.config
    llama = config.model_type in ("llama", "smollm3")  # rows of q and k in pairs
    heads = {0: config.num_attention_heads, 1: config.num_key_value_heads}
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0,
                                                    target_modules=[l[0] for l in LINEARS]))
    with torch.no_grad():
        for layer, k, _, a, b in pairs(model):
            a.copy_(torch.from_numpy(start_values(layer * 14 + k * 2, a.numel(), a.shape[1] ** -0.5).reshape(a.shape)))
            v = start_values(layer * 14 + k * 2 + 1, b.numel(), 0.02).reshape(b.shape)
            b.copy_(torch.from_numpy(unpermute(v, heads[k]).copy() if llama and k in heads else v))
    rows = [[3 + (r * 37 + j * 11 + r * j * 5) % (config.vocab_size - 3) for j in range(p + a)]
            for r, (p, a) in enumerate(zip(PROMPTS, ANSWERS))]

    def loss():
        total = 0
        for ids, p in zip(rows, PROMPTS):
            logits = model(torch.tensor([ids[:-1]])).logits[0, p - 1:]
            total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(ids[p:])) / len(rows)
        return total

    params = [x for _, _, _, a, b in pairs(model) for x in (a, b)]
    optimiser = torch.optim.AdamW(params, lr=LR, betas=(0.9, 0.99), weight_decay=0.0)
    warm = round(WARM_UP * STEPS)
    losses = []
    w = gguf.GGUFWriter(str(out), "train")
    for step in range(STEPS):
        factor = (step + 1) / warm if step < warm else \
            LR_END + (1 - LR_END) * 0.5 * (1 + math.cos(math.pi * (step - warm) / (STEPS - warm - 1)))
        for g in optimiser.param_groups:
            g["lr"] = LR * factor
        optimiser.zero_grad()
        now = loss()
        now.backward()
        losses.append(now.item())
        for layer, k, name, a, b in pairs(model) if step == 0 else []:
            gb = b.grad.numpy()
            w.add_tensor(name + ".lora_a", a.grad.numpy().copy())
            w.add_tensor(name + ".lora_b", permute(gb, heads[k]).copy() if llama and k in heads else gb.copy())
        torch.nn.utils.clip_grad_norm_(params, CLIP)
        optimiser.step()
    w.add_array("train.losses", losses)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    print(out.name, " ".join(f"{x:.5f}" for x in losses))


torch.set_num_threads(1)
torch.manual_seed(0)
if len(sys.argv) > 2 and sys.argv[1] == "--check":
    make(Path(sys.argv[2]), Path("train-check.gguf"))
else:
    for name in sys.argv[1:] or ("stories260K", "random-qwen2", "random-qwen3", "random-smollm3", "random-gemma3"):
        make(DATA / f"{name}.gguf", HERE / f"train-{name}.gguf")
