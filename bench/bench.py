#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures crayon beside its peers and writes bench/results/NAME.json (development only).

usage: bench/bench.py [--rounds N] [--threads N] [--out FILE] [MODEL.gguf ...]

Rounds are interleaved: ours, theirs, ours, theirs; medians and spreads are over the rounds. A peer
runs when its program is named in the environment:
  CRAYON_LLAMA_SIMPLE  llama-simple of llama.cpp, which runs with as many threads as there are cores
CRAYON names our program (build/crayon).
"""
import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
CRAYON = os.environ.get("CRAYON", os.path.join(ROOT, "build", "crayon"))
PROMPT_16 = "the sea was calm and the small boat went on along the grey coast until night"
WORDS = "the sea was calm and the small boat went on along the grey coast until night fell "


def run(cmd, **kw):
    """Wall seconds, peak resident bytes, standard output of one process."""
    start = time.perf_counter()
    p = subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **kw)
    out = p.stdout.read()
    _, status, usage = os.wait4(p.pid, 0)
    p.returncode = os.waitstatus_to_exitcode(status)
    if p.returncode:
        raise RuntimeError(f"{cmd}: exit code {p.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024, out.decode(errors="replace")


def text_of(model, n_tokens):
    """A text of about n tokens of this model, made of plain words."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
        f.write(WORDS * 40)
        f.flush()
        ids = json.loads(run([CRAYON, "tokenize", "-m", model, "--json", "-q", f.name])[2])
    return (WORDS * 40)[: int(len(WORDS) * 40 * n_tokens / len(ids))].strip()


def ours(model, threads, prompt, n, *more):
    _, peak, out = run([CRAYON, "run", "-m", model, "-t", str(threads), "--raw", "--temp", "0", "-n",
                        str(n), "--ignore-end", "--json", "-q", "-p", prompt, *more])
    t = json.loads(out)["timings"]
    return {"prefill": 1e3 * t["prefill_tokens"] / t["prefill_ms"],
            "decode": 1e3 * t["decode_tokens"] / t["decode_ms"] if t["decode_tokens"] > 1 else None,
            "load_ms": t["load_ms"], "first_token_ms": t["first_token_ms"], "peak": peak}


def llama_simple(model, prompt, n):
    """Whole-process ms, peak bytes, and tokens/s of prompt and answer by its own clock."""
    start = time.perf_counter()
    p = subprocess.Popen([os.environ["CRAYON_LLAMA_SIMPLE"], "-m", model, "-ngl", "0", "-n", str(n), prompt],
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    text = p.stderr.read().decode(errors="replace")
    _, _, usage = os.wait4(p.pid, 0)
    wall = 1e3 * (time.perf_counter() - start)
    speeds = [float(x) for x in re.findall(r"eval time =.*?([\d.]+) tokens per second", text)]
    return wall, usage.ru_maxrss * 1024, speeds


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def engine(model, threads, rounds, palette):
    long_text, rows = text_of(model, 512), {}

    def note(name, value):
        if value is not None:
            rows.setdefault(name, []).append(value)

    for _ in range(rounds):
        a, b = ours(model, threads, long_text, 1), ours(model, threads, "The", 128)
        note("crayon prefill tok/s", a["prefill"])
        note("crayon decode tok/s", b["decode"])
        note("crayon peak MiB", b["peak"] / 2**20)
        if palette:
            a, b = (ours(model, threads, long_text, 1, "--palette", palette),
                    ours(model, threads, "The", 128, "--palette", palette))
            note("crayon + palette prefill tok/s", a["prefill"])
            note("crayon + palette decode tok/s", b["decode"])
        start, peak, _ = run([CRAYON, "run", "-m", model, "-t", str(threads), "--raw", "-n", "1", "--temp", "0",
                              "-q", "-p", PROMPT_16])
        note("crayon process to first token ms", 1e3 * start)
        if os.environ.get("CRAYON_LLAMA_SIMPLE"):
            wall, peak, _ = llama_simple(model, PROMPT_16, 1)
            note("llama.cpp process to first token ms", wall)
            note("llama.cpp peak MiB", peak / 2**20)
            note("llama.cpp prefill tok/s", llama_simple(model, long_text, 2)[2][0])
            note("llama.cpp decode tok/s", llama_simple(model, "The", 128)[2][1])
    return {k: spread(v) for k, v in rows.items()}




def blend(model, pool, examples, rounds):
    times = []
    for _ in range(rounds):
        out = run([CRAYON, "blend", "-m", model, "--pool", pool, "--examples", examples, "--level", "instant", "--shots",
                   "10", "--json", "-q", "-o", tempfile.mktemp(".palette")])[2]
        t = json.loads(out)
        times.append(sum(float(t[k]) for k in ("embed_ms", "solve_ms", "apply_ms")))
    return spread(times)


def machine():
    cpu = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read())
    return {"cpu": cpu.group(1) if cpu else platform.processor(), "cores": os.cpu_count(),
            "load_before": os.getloadavg()[0],
            "commit": subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True,
                                     text=True).stdout.strip()}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--out", default=os.path.join(HERE, "results", "latest.json"))
    p.add_argument("models", nargs="*")
    a = p.parse_args()
    small = os.path.join(ROOT, "models", "crayon-15m-q8_0.gguf")
    pool = os.path.join(ROOT, "models", "crayon-15m-pool.gguf")
    examples = os.path.join(ROOT, "demo", "clinc150.jsonl")
    palette = tempfile.mktemp(".palette")
    run([CRAYON, "blend", "-m", small, "--pool", pool, "--examples", examples, "--level", "instant", "-q",
         "-o", palette])
    result = {"machine": machine(), "threads": a.threads, "command": " ".join(os.path.basename(x) for x in sys.argv), "rows": {}}
    for m in a.models or [small]:
        result["rows"][os.path.basename(m)] = engine(m, a.threads, a.rounds, palette if m == small else None)
    result["blend of 10 examples, ms"] = blend(small, pool, examples, a.rounds)
    result["load_after"] = os.getloadavg()[0]
    os.makedirs(os.path.dirname(a.out), exist_ok=True)
    with open(a.out, "w") as f:
        json.dump(result, f, indent=1)
        f.write("\n")
    for m, rows in result["rows"].items():
        print(m)
        for k, v in rows.items():
            print(f"  {k:38s} {v['median']:9.1f}  ({v['min']:.1f}-{v['max']:.1f}, n={v['n']})")
    b = result["blend of 10 examples, ms"]
    print(f"blend of 10 examples, instant: {b['median']:.2f} ms ({b['min']:.2f}-{b['max']:.2f})")


main()
