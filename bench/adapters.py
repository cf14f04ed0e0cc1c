#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Training and blending adapters: crayon beside PyTorch + PEFT, in turns (development only).

usage: bench/adapters.py MODEL.gguf [--rounds N] [--steps N] [--threads N] [--peers bf16,f32] [--only train|blend]
                     [--out FILE]

Training: one LoRA of rank 8 on all seven linears, steps of 8 rows of 256 tokens with 32 answer tokens (2048
tokens, all counted), AdamW. PEFT computes the logits of the answers only. A speed is that of all steps after the
first; PEFT's peak is counted from the loaded model on, ours from the start of the process.
Blending: 10 examples to an applied palette, instant level, pools of 8 and 32 adapters of rank 8, against
add_weighted_adapter (linear, cat) and set_adapter on 8 and 32 adapters in memory.
A round runs everything once. --out adds the rounds to those that FILE has, with medians over all of them.
Needs build/crayon, build/bench_blend, torch, transformers, peft, gguf. CRAYON names another build folder.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = Path(os.environ.get("CRAYON", ROOT / "build"))
CRAYON, BENCH_BLEND = str(BUILD / "crayon"), str(BUILD / "bench_blend")
ROWS, TOKENS, ANSWER = 8, 256, 32
SIZES = (8, 32)
NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


# ---- the peer, in processes of its own ----

def peer_model(path, threads, precision):
    sys.path.insert(0, str(ROOT / "tests" / "golden"))
    import torch
    from make_models import reference
    torch.set_num_threads(threads)
    return torch, reference(path).to(torch.bfloat16 if precision == "bf16" else torch.float32)


def peak_since(reset):
    """Peak resident MiB of this process; reset starts it anew."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024


def peer_train(path, threads, precision, steps):
    import gc
    torch, m = peer_model(path, threads, precision)
    from peft import LoraConfig, get_peft_model
    m = get_peft_model(m, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=NAMES)).train()
    params = [p for p in m.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    ids = torch.randint(0, m.config.vocab_size, (ROWS, TOKENS))
    gc.collect()
    peak_since(True)
    for step in range(steps + 1):
        if step == 1:
            start, cpu = time.time(), time.process_time()
        logits = m(input_ids=ids, logits_to_keep=ANSWER + 1).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -ANSWER:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        optimiser.zero_grad()
    n = ROWS * TOKENS * steps
    print(json.dumps({"tokens/s": n / (time.time() - start), "tokens/CPU-s": n / (time.process_time() - cpu),
                      "peak MiB": peak_since(False)}))


def peer_blend(path, threads, n):
    """Each line on standard input: one blend of each kind."""
    torch, m = peer_model(path, threads, "f32")
    from peft import LoraConfig, get_peft_model
    config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=NAMES, init_lora_weights=False)
    m = get_peft_model(m, config, adapter_name="a0")
    for i in range(1, n):
        m.add_adapter(f"a{i}", config)
    names, weights = [f"a{i}" for i in range(n)], [1.0 / n] * n
    for _ in sys.stdin:
        took = {}
        for kind in ("linear", "cat"):
            start = time.perf_counter()
            m.add_weighted_adapter(names, weights, "mix", combination_type=kind)
            m.set_adapter("mix")
            took[f"{kind} ms"] = 1e3 * (time.perf_counter() - start)
            m.set_adapter("a0")
            m.delete_adapter("mix")
        print(json.dumps(took), flush=True)


def peer(*args, **kw):
    return subprocess.Popen([sys.executable, __file__, *map(str, args)], stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, text=True, **kw)


# ---- ours ----

def rows_file(model, folder):
    """A task of rows of exactly 256 tokens: " the" is one token, and the rest is measured."""
    def tokens(text):
        out = subprocess.run([CRAYON, "tokenize", "-m", model, "--jsonl", "--json", "-"], check=True,
                             input=json.dumps({"text": text}), capture_output=True, text=True).stdout
        return len(json.loads(out))
    answer = "the" + " the" * (ANSWER - 2)
    assert tokens(" " + answer + "\n") == ANSWER
    question = "the" + " the" * (TOKENS - ANSWER - tokens("Question: the\nAnswer:"))
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"task": "t", "question": question, "answer": answer}) + "\n"
                            for _ in range(64)))
    return path


def train(args, rows, precision):
    # the last token of a row is not run: 255 are
    command = [CRAYON, "pool", "train", "-m", args.model, "-t", str(args.threads), str(rows), "--kind", "lora",
               "--rank", "8", "--step-tokens", str(ROWS * (TOKENS - 1)), "--batch-tokens", str(2 * (TOKENS - 1)),
               "--steps", str(args.steps), "--precision", precision, "--checkpoint-seconds", "-1", "--json",
               "-o", str(rows.parent / "out.gguf"), *args.more]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    text = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, command
    r, scale = json.loads(text), TOKENS / (TOKENS - 1)
    return {"tokens/s": r["tokens_per_s"] * scale, "peak MiB": usage.ru_maxrss / 1024}


def pools(args, folder):
    """Pools of random sizes but real shapes, and ten examples."""
    tasks = subprocess.run(["xz", "-dc", str(ROOT / "data" / "train.jsonl.xz")], check=True, capture_output=True,
                           text=True).stdout.splitlines(keepends=True)
    (folder / "tasks.jsonl").write_text("".join(tasks[::97]))
    (folder / "examples.jsonl").write_text("".join(tasks[::701][:10]))
    for n in SIZES:
        subprocess.run([CRAYON, "pool", "train", "-q", "-m", args.model, str(folder / "tasks.jsonl"), "--kind", "library",
                        "--n", str(n), "--rows", "2", "--steps", "1", "--step-tokens", "400", "-o",
                        str(folder / f"pool{n}.gguf")], check=True, capture_output=True)


def blend(args, folder, n):
    out = subprocess.run([BENCH_BLEND, args.model, str(folder / f"pool{n}.gguf"), str(folder / "examples.jsonl"), "-t",
                          str(args.threads), "-r", "5"], check=True, capture_output=True, text=True).stdout
    r = json.loads(out)
    mid = lambda key: statistics.median(x[key] for x in r["rounds"])
    return {"total ms": mid("total_ms"), "embed ms": mid("embed_ms"), "apply ms": mid("apply_ms"),
            "first, pool not yet read, ms": r["first"][0]["total_ms"]}


# ---- rounds and results ----

def add(rows, who, values):
    for key, value in values.items():
        rows.setdefault(who, {}).setdefault(key, {"samples": []})["samples"].append(value)


def run(args, rows, folder):
    precisions = [p for p in args.peers.split(",") if p]
    if args.only != "blend":
        path = rows_file(args.model, folder)
    if args.only != "train":
        pools(args, folder)
        peers = {n: peer(args.model, "--threads", args.threads, "--peer-blend", n, stdin=subprocess.PIPE) for n in SIZES}
    for _ in range(args.rounds):
        if args.only != "blend":
            for precision in ("bf16", "f32"):
                add(rows, f"training, crayon {precision}", train(args, path, precision))
                if precision in precisions:
                    out = peer(args.model, "--threads", args.threads, "--steps", args.steps, "--peer-train", precision)
                    add(rows, f"training, PEFT {precision}", json.loads(out.communicate()[0].splitlines()[-1]))
        if args.only != "train":
            for n in SIZES:
                add(rows, f"blend of {n}, crayon", blend(args, folder, n))
                peers[n].stdin.write("\n")
                peers[n].stdin.flush()
                add(rows, f"blend of {n}, PEFT", json.loads(peers[n].stdout.readline()))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--steps", type=int, default=3)
    p.add_argument("--peers", default="bf16,f32")
    p.add_argument("--only", choices=["train", "blend"])
    p.add_argument("--out")
    p.add_argument("--more", nargs="*", default=[], help="further options of our training")
    p.add_argument("--peer-train", help=argparse.SUPPRESS)
    p.add_argument("--peer-blend", type=int, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.peer_train:
        return peer_train(args.model, args.threads, args.peer_train, args.steps)
    if args.peer_blend:
        return peer_blend(args.model, args.threads, args.peer_blend)
    result = {"rows": {}}
    if args.out and Path(args.out).exists():
        result = json.loads(Path(args.out).read_text())
    git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    cpu = [x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    result |= {"machine": {"cpu": cpu[0], "cores": len(cpu), "system": platform.release(), "commit": git.stdout.strip()},
               "command": "bench/adapters.py " + " ".join(Path(a).name if "/" in a else a for a in sys.argv[1:])}
    with tempfile.TemporaryDirectory() as name:
        run(args, result["rows"], Path(name))
    for who, values in result["rows"].items():
        line = f"{who:24}"
        for key, v in values.items():
            s = sorted(v["samples"])
            v |= {"median": statistics.median(s), "min": s[0], "max": s[-1], "n": len(s)}
            line += f"  {v['median']:.2f} ({s[0]:.2f}-{s[-1]:.2f}) {key}"
        print(line)
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
