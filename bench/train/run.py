#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Training speed and peak memory of one LoRA: crayon beside PyTorch + PEFT, in turns.

usage: run.py CRAYON MODEL.gguf [--threads N] [--rounds N] [--steps N] [--precision auto|f32]

r 8 on all seven linears, steps of 8 rows of 256 tokens with 32 answer tokens (2048 tokens, all counted),
AdamW. PEFT computes the logits of the answers only. Each round runs crayon, PEFT in float32 and PEFT in
bfloat16 for `steps` steps each; a process's speed is that of its whole training after the first step.
Needs torch, transformers, peft, gguf (for the peer). Prints medians, minima and maxima.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS, TOKENS, ANSWER = 8, 256, 32


def peer(model, precision, threads, steps):
    """One PEFT run in this process; prints JSON."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "golden"))
    import torch
    from make_models import reference
    from peft import LoraConfig, get_peft_model

    torch.set_num_threads(threads)
    m = reference(model).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    m = get_peft_model(m, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=names)).train()
    params = [p for p in m.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    ids = torch.randint(0, m.config.vocab_size, (ROWS, TOKENS))
    start = None
    for step in range(steps + 1):
        if step == 1:
            start = (time.time(), time.process_time())
        logits = m(input_ids=ids, logits_to_keep=ANSWER + 1).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -ANSWER:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        optimiser.zero_grad()
    n = ROWS * TOKENS * steps
    print(json.dumps({"tokens_per_s": n / (time.time() - start[0]),
                      "tokens_per_cpu_s": n / (time.process_time() - start[1]),
                      "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def rows_file(crayon, model, folder):
    """A task of rows of exactly 256 tokens: " the" is one token, and the rest is measured."""
    def tokens(text):
        out = subprocess.run([crayon, "tokenize", "-m", model, "--jsonl", "--json", "-"], check=True,
                             input=json.dumps({"text": text}), capture_output=True, text=True).stdout
        return len(json.loads(out))
    answer = "the" + " the" * (ANSWER - 2)
    assert tokens(" " + answer + "\n") == ANSWER
    fixed = tokens("Question: the\nAnswer:")
    question = "the" + " the" * (TOKENS - ANSWER - fixed)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"task": "t", "question": question, "answer": answer}) + "\n"
                            for _ in range(64)))
    return path


def ours(args, rows, folder):
    out = folder / "pool.gguf"
    # the last token of a row is not run: 255 are
    command = [args.crayon, "pool", "train", "-m", args.model, "-t", str(args.threads), str(rows), "--kind", "lora",
               "--rank", "8", "--step-tokens", str(ROWS * (TOKENS - 1)), "--batch-tokens", str(2 * (TOKENS - 1)),
               "--steps", str(args.steps), "--precision", args.precision, "--checkpoint-seconds", "-1",
               "--json", "-o", str(out)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    text = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, command
    report = json.loads(text)
    scale = TOKENS / (TOKENS - 1)
    return {"tokens_per_s": report["tokens_per_s"] * scale,
            "tokens_per_cpu_s": report["tokens"] * scale / (usage.ru_utime + usage.ru_stime),
            "peak": usage.ru_maxrss / 1024}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("crayon")
    p.add_argument("model")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--precision", default="auto")
    p.add_argument("--peer", default=None, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.peer:
        return peer(args.model, args.peer, args.threads, args.steps)
    seen = {"crayon": [], "PEFT f32": [], "PEFT bf16": []}
    with tempfile.TemporaryDirectory() as name:
        rows = rows_file(args.crayon, args.model, Path(name))
        for _ in range(args.rounds):
            seen["crayon"].append(ours(args, rows, Path(name)))
            for precision in ("f32", "bf16"):
                out = subprocess.run([sys.executable, __file__, args.crayon, args.model, "--peer", precision,
                                      "--threads", str(args.threads), "--steps", str(args.steps)],
                                     check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
                seen["PEFT " + precision].append(json.loads(out.splitlines()[-1]))
    for who, runs in seen.items():
        line = f"{who:10}"
        for key, unit in (("tokens_per_s", "tok/s"), ("tokens_per_cpu_s", "tok/CPU-s"), ("peak", "MiB")):
            v = sorted(r[key] for r in runs)
            line += f"  {statistics.median(v):7.0f} ({v[0]:.0f}-{v[-1]:.0f}) {unit}"
        print(line)
    for key in ("tokens_per_s", "tokens_per_cpu_s", "peak"):
        mid = {who: statistics.median(r[key] for r in runs) for who, runs in seen.items()}
        best = (min if key == "peak" else max)(mid["PEFT f32"], mid["PEFT bf16"])
        print(f"crayon / better peer, {key}: {mid['crayon'] / best:.2f}")


main()
