#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The peers of `crayon pool train --device cuda` on the same GPU, for docs/cuda.md.

torch: our own pool code (SHARED A, N adapters, learned task weights) over a Llama in bfloat16;
       rows packed into lines of 512 tokens with a mask, logits for answer tokens only, each layer
       compiled, the whole step (forward, backward, AdamW) one CUDA graph.
peft:  transformers and PEFT as they are used: one LoRA of the same rank, rows sorted by length and
       padded, bfloat16, eager.

Weights are random: only shapes matter for speed. Rows have the lengths of --lines FILE (one row per
line: prompt tokens and answer tokens), or of a geometric draw with mean 50 and 7 answer tokens.
Tokens are counted without padding. Prints one JSON line per peer.
"""
import argparse
import json
import random
import statistics
import time

import torch
import torch.nn.functional as F

LINE = 512


def rows_of(args):
    rng = random.Random(1)
    if args.lines:
        with open(args.lines, encoding="utf-8") as f:
            rows = [tuple(map(int, line.split()[:2])) for line in f]
        rng.shuffle(rows)
    else:
        rows = [(5 + int(rng.expovariate(1 / 38)), 1 + int(rng.expovariate(1 / 6)))
                for _ in range(20000)]
    return [(min(p, LINE - 64), min(a, 64)) for p, a in rows]


class Shape:
    def __init__(self, tiny):
        self.e, self.h, self.g, self.d, self.f, self.layers, self.v = (
            (64, 4, 2, 16, 128, 2, 512) if tiny else (576, 9, 3, 64, 1536, 30, 49152))


def step_of(rows, at, budget):
    """Rows for one step, packed into lines: ids, positions, document of each token, answers."""
    lines, room, used = [], [], 0
    while at < len(rows) and used + sum(rows[at]) <= budget:
        n = sum(rows[at]) - 1
        spot = next((i for i, r in enumerate(room) if r >= n), None)
        if spot is None:
            lines.append([])
            room.append(LINE)
            spot = len(lines) - 1
        lines[spot].append((at, *rows[at]))
        room[spot] -= n
        used += n
        at += 1
    return lines, used, at


def torch_peer(args, shape, device):
    s, n, r = shape, args.n, args.rank
    dt = torch.bfloat16
    gen = torch.Generator(device=device).manual_seed(1)

    def weight(*size):
        return torch.randn(*size, device=device, dtype=dt, generator=gen) * 0.04

    lins = {"q": (s.h * s.d, s.e), "k": (s.g * s.d, s.e), "v": (s.g * s.d, s.e),
            "o": (s.e, s.h * s.d), "gate": (s.f, s.e), "up": (s.f, s.e), "down": (s.e, s.f)}
    frozen = [{k: weight(*v) for k, v in lins.items()} for _ in range(s.layers)]
    table = weight(s.v, s.e)
    params = []

    def trained(*size, scale):
        p = (torch.randn(*size, device=device, generator=gen) * scale).requires_grad_()
        params.append(p)
        return p

    low = [{k: (trained(r, v[1], scale=0.02), trained(n * r, v[0], scale=0.01))
            for k, v in lins.items()} for _ in range(s.layers)]
    tasks = trained(args.tasks, n, scale=0.3)
    ones = torch.ones(s.e, device=device, dtype=dt)
    inv = 10000 ** (-torch.arange(0, s.d, 2, device=device).float() / s.d)

    def rope(x, cos, sin):
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(dt)

    def layer(x, mix, cos, sin, mask, w, p):
        def lin(x, k):
            a, b = p[k]
            u = F.linear(x, a.to(dt))
            v = (mix.unsqueeze(-1) * u.unsqueeze(-2)).flatten(-2).to(dt)
            return F.linear(x, w[k]) + 2.0 * (v @ b.to(dt))

        rows, length, _ = x.shape
        y = F.rms_norm(x, (s.e,), ones, 1e-5)
        q = lin(y, "q").view(rows, length, s.h, s.d).transpose(1, 2)
        k = lin(y, "k").view(rows, length, s.g, s.d).transpose(1, 2)
        v = lin(y, "v").view(rows, length, s.g, s.d).transpose(1, 2)
        q, k = rope(q, cos, sin), rope(k, cos, sin)
        k, v = (t.repeat_interleave(s.h // s.g, 1) for t in (k, v))
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + lin(o.transpose(1, 2).reshape(rows, length, s.h * s.d), "o")
        y = F.rms_norm(x, (s.e,), ones, 1e-5)
        return x + lin(F.silu(lin(y, "gate")) * lin(y, "up"), "down")

    run_layer = torch.compile(layer, dynamic=False) if args.compile else layer

    def loss_of(b):
        cos, sin = torch.cos(b["pos"][..., None] * inv), torch.sin(b["pos"][..., None] * inv)
        cos, sin = cos[:, None], sin[:, None]
        mix = tasks[b["task"]].to(dt)
        x = table[b["ids"]]
        for w, p in zip(frozen, low):
            x = run_layer(x, mix, cos, sin, b["mask"], w, p)
        x = F.rms_norm(x.view(-1, s.e)[b["row"]], (s.e,), ones, 1e-5)
        nll = F.cross_entropy(F.linear(x, table).float(), b["target"], reduction="none")
        return (nll * b["weight"]).sum()

    rows, at, batches = rows_of(args), 0, []
    for _ in range(args.steps):
        lines, used, at = step_of(rows, at, args.tokens)
        batches.append((lines, used))
    n_lines = max(len(b[0]) for b in batches)
    n_answers = max(sum(a for line in b[0] for _, _, a in line) for b in batches)
    rng = random.Random(2)

    def make(lines):
        ids = torch.randint(0, s.v, (n_lines, LINE))
        pos, doc = torch.zeros(n_lines, LINE), torch.full((n_lines, LINE), -1)
        task = torch.zeros(n_lines, LINE, dtype=torch.long)
        row = torch.zeros(n_answers, dtype=torch.long)
        weight = torch.zeros(n_answers)
        i = 0
        for l, line in enumerate(lines):
            t = 0
            for which, p, a in line:
                length = p + a - 1
                pos[l, t:t + length] = torch.arange(length)
                doc[l, t:t + length] = which
                task[l, t:t + length] = rng.randrange(args.tasks)
                row[i:i + a] = l * LINE + t + p - 1 + torch.arange(a)
                weight[i:i + a] = 1 / (a * 260)
                i += a
                t += length
        see = (doc[:, :, None] == doc[:, None, :]) & torch.ones(LINE, LINE).tril().bool()
        see |= torch.eye(LINE).bool()
        mask = torch.zeros(n_lines, 1, LINE, LINE, dtype=dt).masked_fill(~see[:, None], -torch.inf)
        b = {"ids": ids, "pos": pos, "task": task, "row": row, "weight": weight, "mask": mask,
             "target": torch.randint(0, s.v, (n_answers,))}
        return {k: v.to(device) for k, v in b.items()}

    static = make(batches[0][0])
    cuda = device == "cuda"
    opt = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.99), weight_decay=0,
                            **({"fused": True, "capturable": True} if cuda else {}))

    def step():
        loss = loss_of(static)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
        opt.step()
        opt.zero_grad(set_to_none=False)
        return loss

    start = time.time()
    if cuda:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.reset_peak_memory_stats()
        with torch.cuda.graph(graph):
            step()
    compiled = time.time() - start
    made = [make(b[0]) for b in batches[:4]]
    times = []
    for i in range(args.steps):
        if cuda:
            torch.cuda.synchronize()
        start = time.time()
        for k, v in static.items():
            v.copy_(made[i % len(made)][k])
        if cuda:
            graph.replay()
            torch.cuda.synchronize()
        else:
            step()
        times.append(batches[i % len(made)][1] / (time.time() - start))
    report(args, "torch", times, compiled, {"lines": n_lines, "answers": n_answers})


def peft_peer(args, shape, device):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM
    s = shape
    config = LlamaConfig(hidden_size=s.e, intermediate_size=s.f, num_hidden_layers=s.layers,
                         num_attention_heads=s.h, num_key_value_heads=s.g, head_dim=s.d,
                         vocab_size=s.v, tie_word_embeddings=True, attn_implementation="sdpa")
    model = LlamaForCausalLM(config).to(device, torch.bfloat16)
    model = get_peft_model(model, LoraConfig(
        r=args.rank, lora_alpha=2 * args.rank, task_type="CAUSAL_LM",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
                        "down_proj"]))
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    rows, at, times = rows_of(args), 0, []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for i in range(args.peft_steps + 2):
        used, batch = 0, []
        while used + sum(rows[at]) <= args.tokens:
            batch.append(rows[at])
            used += sum(rows[at]) - 1
            at += 1
        batch.sort(key=sum)
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.time()
        for part in range(0, len(batch), 64):
            rows64 = batch[part:part + 64]
            longest = max(map(sum, rows64))
            ids = torch.randint(0, s.v, (len(rows64), longest), device=device)
            mask = torch.zeros(len(rows64), longest, dtype=torch.long)
            labels = torch.full((len(rows64), longest), -100)
            for k, (p, a) in enumerate(rows64):
                mask[k, :p + a] = 1
                labels[k, p:p + a] = 7
            out = model(input_ids=ids, attention_mask=mask.to(device), labels=labels.to(device))
            out.loss.backward()
        opt.step()
        opt.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        if i >= 2:
            times.append(used / (time.time() - start))
    report(args, "peft", times, 0, {})


def report(args, name, times, compiled, more):
    times.sort()
    line = {"peer": name, "n": args.n if name == "torch" else 1, "rank": args.rank,
            "tokens_per_step": args.tokens, "steps": len(times),
            "tokens_per_s": round(statistics.median(times)),
            "low": round(times[len(times) // 10]), "high": round(times[-1 - len(times) // 10]),
            "compile_s": round(compiled, 1), "torch": torch.__version__, **more}
    if torch.cuda.is_available():
        line["gpu"] = torch.cuda.get_device_name()
        line["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        line["reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
    print(json.dumps(line), flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--peer", choices=["torch", "peft"], default="torch")
    p.add_argument("--n", type=int, default=8)
    p.add_argument("--rank", type=int, default=8)
    p.add_argument("--tasks", type=int, default=176)
    p.add_argument("--tokens", type=int, default=12288)
    p.add_argument("--steps", type=int, default=40)
    p.add_argument("--peft-steps", type=int, default=6)
    p.add_argument("--lines")
    p.add_argument("--no-compile", dest="compile", action="store_false")
    p.add_argument("--tiny", action="store_true", help="a model to try the script on a CPU")
    args = p.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peer = torch_peer if args.peer == "torch" else peft_peer
    peer(args, Shape(args.tiny), device)


if __name__ == "__main__":
    main()
