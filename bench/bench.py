#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures crayon beside its peers, in turn, and writes bench/results/NAME.json and one SVG a table
(development only).

usage: bench/bench.py [--rounds N] [--threads 1,2] [--only-speed] [--out FILE] [MODEL.gguf ...]

Rounds are interleaved: crayon, peer, peer, crayon, ... ; medians and spreads are over the rounds. A
round in which other programs used more than 4 % of the processors, or the host took more than 2 %,
is left out where at least three others are left; "busy" tells how many were kept in spite of it.
The environment names the peers:
  CRAYON_LLAMA_BENCH   llama-bench of llama.cpp
  CRAYON_IK_BENCH      llama-bench of ik_llama.cpp
  CRAYON_LLAMA_SIMPLE  llama-simple of llama.cpp: start and memory
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
HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def cpu_ticks():
    """Ticks of all processors: busy, stolen by the host, all."""
    v = [int(x) for x in open("/proc/stat").readline().split()[1:9]]
    return v[0] + v[1] + v[2], v[7], sum(v)


def run(cmd, **env):
    """Standard output, wall seconds, peak resident bytes, and whether the machine was quiet."""
    before, start = cpu_ticks(), time.perf_counter()
    p = subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **env})
    out = p.stdout.read()
    _, status, usage = os.wait4(p.pid, 0)
    wall, after = time.perf_counter() - start, cpu_ticks()
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"{cmd}: exit code {os.waitstatus_to_exitcode(status)}")
    ours = (usage.ru_utime + usage.ru_stime) * os.sysconf("SC_CLK_TCK")
    total = max(1, after[2] - before[2])
    quiet = (after[0] - before[0] - ours) / total < 0.04 and (after[1] - before[1]) / total < 0.02
    return out.decode(errors="replace"), wall, usage.ru_maxrss * 1024, quiet


def ours(model, threads, pages, *more):
    out, _, peak, quiet = run([CRAYON, "bench", "-m", model, "-t", str(threads), "--pages", pages, "--rounds", "2",
                               "--json", "-q", *more])
    t = json.loads(out)
    return {"prefill": t["prefill_tokens_per_s"], "decode": t["decode_tokens_per_s"],
            "read_share": t.get("decode_share_of_reading"), "peak_share": t.get("prefill_share_of_peak")}, quiet


def llama_bench(program, model, threads, huge, *more):
    out, _, _, quiet = run([program, "-m", model, "-t", str(threads), "-p", "512", "-n", "128", "-r", "2", "-o", "json",
                            *more], **(HUGE if huge else {}))
    rows = json.loads(out)
    return {"prefill" if r["n_prompt"] else "decode": statistics.median(r["samples_ts"]) for r in rows}, quiet


def runners(model, threads):
    """Name -> function that measures once."""
    r = {"crayon, huge pages": lambda: ours(model, threads, "huge"),
         "crayon, mapped": lambda: ours(model, threads, "map")}
    lc, ik = os.environ.get("CRAYON_LLAMA_BENCH"), os.environ.get("CRAYON_IK_BENCH")
    if lc:
        r["llama.cpp"] = lambda: llama_bench(lc, model, threads, False)
        r["llama.cpp, huge pages"] = lambda: llama_bench(lc, model, threads, True, "-lm", "none")
    if ik:
        r["ik_llama.cpp"] = lambda: llama_bench(ik, model, threads, False, "-rtr", "1", "-fa", "1")
        r["ik_llama.cpp, huge pages"] = lambda: llama_bench(ik, model, threads, True, "-rtr", "1", "-fa", "1")
    return r


def spread(samples):
    """samples: (value, quiet)."""
    quiet = [v for v, q in samples if q]
    values = quiet if len(quiet) >= 3 else [v for v, _ in samples]
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values),
            "busy": len(values) - min(len(quiet), len(values))}


def collect(rounds, runners):
    """runners: name -> function that gives {row: value or None}, quiet. Returns {row: {name: spread}}."""
    samples, failed = {}, set()
    for _ in range(rounds):
        for name, fn in runners.items():
            if name in failed:
                continue
            try:
                values, quiet = fn()
            except (RuntimeError, ValueError) as e:
                print(f"{name}: {e}", file=sys.stderr)
                failed.add(name)
                continue
            for row, v in values.items():
                if v is not None:
                    samples.setdefault(row, {}).setdefault(name, []).append((v, quiet))
    return {row: {name: spread(s) for name, s in by.items()} for row, by in samples.items()}


def start_table(model, rounds):
    samples = {}
    simple = os.environ.get("CRAYON_LLAMA_SIMPLE")
    for _ in range(rounds):
        for pages in ("map", "huge"):
            _, wall, peak, quiet = run([CRAYON, "run", "-m", model, "--raw", "-n", "1", "--temp", "0", "-q", "--pages",
                                        pages, "-p", PROMPT_16])
            samples.setdefault(f"crayon, {pages}: process to first token, ms", []).append((1e3 * wall, quiet))
            samples.setdefault(f"crayon, {pages}: peak above file, MiB", []).append(
                ((peak - os.path.getsize(model)) / 2**20, quiet))
        if simple:
            _, wall, peak, quiet = run([simple, "-m", model, "-ngl", "0", "-n", "1", PROMPT_16])
            samples.setdefault("llama.cpp: process to first token, ms", []).append((1e3 * wall, quiet))
            samples.setdefault("llama.cpp: peak above file, MiB", []).append(
                ((peak - os.path.getsize(model)) / 2**20, quiet))
    return {k: spread(v) for k, v in samples.items()}


def blend_table(model, pool, examples, rounds):
    samples, palette = [], tempfile.mktemp(".palette")
    for _ in range(rounds):
        out, _, _, quiet = run([CRAYON, "blend", "-m", model, "--pool", pool, "--examples", examples, "--level", "instant",
                                "--shots", "10", "--json", "-q", "-o", palette])
        t = json.loads(out)
        samples.append((sum(float(t[k]) for k in ("embed_ms", "solve_ms", "apply_ms")), quiet))
    with_palette, without = [], []
    for _ in range(rounds):
        without.append(ours(model, 2, "huge"))
        with_palette.append(ours(model, 2, "huge", "--palette", palette, "--pool", pool))
    rows = {"10 examples to applied blend, ms": spread(samples)}
    for what in ("prefill", "decode"):
        rows[f"{what}, no palette, tokens/s"] = spread([(v[what], q) for v, q in without])
        rows[f"{what}, with a palette, tokens/s"] = spread([(v[what], q) for v, q in with_palette])
    return rows


def svg(path, title, table):
    """Bars with their spread, one group for each row of numbers."""
    bar, left, width, lines, y = 16, 190, 420, [], 40
    colour = {"c": "#c2410c", "l": "#64748b", "i": "#94a3b8"}
    for what in ("prefill", "decode"):
        if what not in table:
            continue
        top = max(v["max"] for v in table[what].values())
        lines.append(f'<text x="8" y="{y}" font-weight="bold">{what}, tokens/s</text>')
        y += 8
        for name, v in table[what].items():
            w = width * v["median"] / top
            a, b = (left + width * v[k] / top for k in ("min", "max"))
            lines += [f'<text x="8" y="{y + 12}">{name}</text>',
                      f'<rect x="{left}" y="{y + 2}" width="{w:.1f}" height="{bar - 4}" fill="{colour[name[0]]}"/>',
                      f'<path d="M{a:.1f} {y + 8}H{b:.1f}" stroke="#111"/>',
                      f'<text x="{left + width + 8}" y="{y + 12}">{v["median"]:.0f}</text>']
            y += bar
        y += 24
    with open(path, "w") as f:
        f.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="680" height="{y}" font-family="sans-serif" font-size="12">\n'
                f'<rect width="680" height="{y}" fill="#fff"/>\n<text x="8" y="18" font-size="14">{title}</text>\n'
                + "\n".join(lines) + "\n</svg>\n")


def machine():
    cpu = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read())
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {"cpu": cpu.group(1) if cpu else platform.processor(), "cores": os.cpu_count(),
            "load_before": os.getloadavg()[0], "commit": commit.stdout.strip(),
            "peers": {"llama.cpp": os.environ.get("CRAYON_LLAMA_COMMIT", "0c1e57098"),
                      "ik_llama.cpp": os.environ.get("CRAYON_IK_COMMIT", "8337e4cd")}}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", default="2")
    p.add_argument("--out", default=os.path.join(HERE, "results", "latest.json"))
    p.add_argument("--only-speed", action="store_true", help="no rows of start, memory and blending")
    p.add_argument("models", nargs="*")
    a = p.parse_args()
    small = os.path.join(ROOT, "models", "crayon-15m-q8_0.gguf")
    pool = os.path.join(ROOT, "models", "crayon-15m-pool.gguf")
    result = {"machine": machine(), "command": " ".join(os.path.basename(x) for x in sys.argv), "speed": {}, "start": {}}
    for m in a.models or [small]:
        for threads in (int(t) for t in a.threads.split(",")):
            name = f"{os.path.basename(m)}, {threads} thread{'s' * (threads > 1)}"
            table = result["speed"][name] = collect(a.rounds, runners(m, threads))
            svg(re.sub(r"\.json$", "", a.out) + "-" + re.sub(r"[^a-z0-9_]+", "-", name.lower()) + ".svg", name, table)
            print(name)
            for what in table:
                best = max([v["median"] for k, v in table[what].items() if not k.startswith("crayon")], default=0)
                for k, v in table[what].items():
                    ratio = f"  {v['median'] / best:5.2f} x the best peer" if best and k.startswith("crayon") else ""
                    print(f"  {what:10s} {k:26s} {v['median']:10.2f} ({v['min']:.2f}-{v['max']:.2f}, n={v['n']}, "
                          f"busy={v['busy']}){ratio}")
        if not a.only_speed:
            result["start"][os.path.basename(m)] = start_table(m, a.rounds)
    if not a.only_speed:
        result["blend, 15M"] = blend_table(small, pool, os.path.join(ROOT, "demo", "clinc150.jsonl"), a.rounds)
    result["load_after"] = os.getloadavg()[0]
    os.makedirs(os.path.dirname(os.path.abspath(a.out)), exist_ok=True)
    with open(a.out, "w") as f:
        json.dump(result, f, indent=1)
        f.write("\n")
    for table in (*result["start"].values(), result.get("blend, 15M", {})):
        for k, v in table.items():
            print(f"  {k:50s} {v['median']:10.2f} ({v['min']:.2f}-{v['max']:.2f}, n={v['n']}, busy={v['busy']})")


if __name__ == "__main__":
    main()
