#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Rows beside the peers that bench.py does not have, one table a call, four minutes each at most on a quiet
machine (development only). Rounds are interleaved; medians and spreads are over them, as in bench.py, which also
names the environment variables; CRAYON_LLAMA_BATCHED is llama-batched-bench of llama.cpp.

usage: bench/tables.py depth MODEL.gguf [--depths 2048,4096,8192] [--rounds 1]
           whole prompts of that many tokens, and an answer after them; draws the curve
       bench/tables.py sequences MODEL.gguf [--rounds 5]
           1, 4 and 8 sequences decoded together, after 128 tokens each
       bench/tables.py palette MODEL.gguf [--rounds 15] [--pool POOL.gguf]
           the share of its speed that a model keeps with deltas of rank 8 (any number of adapters that share
           their A) and 64 (eight that do not), with --pool the time to
           change a palette, and a step of REFINE beside a prompt of as many tokens; needs build/bench_engine
           and build/bench_blend
Every table takes --threads N (2) and --out FILE.json; an SVG is written beside it.
"""
import argparse
import json
import os
import sys
import tempfile

from bench import CRAYON, HUGE, ROOT, collect, machine, run, spread

ANSWER = 24
ENGINE, BLEND = (os.path.join(os.path.dirname(CRAYON), p) for p in ("bench_engine", "bench_blend"))


# ---- contexts ----

def crayon_bench(model, threads, *more):
    out, _, _, quiet = run([CRAYON, "bench", "-m", model, "-t", str(threads), "--pages", "huge", "--rounds", "1",
                            "--json", "-q", *more])
    return json.loads(out), quiet


def ours_at(model, threads, depth, kv):
    t, quiet = crayon_bench(model, threads, "--prefill", str(depth), "--decode", str(ANSWER), "--depth", str(depth),
                            "--kv", kv)
    return {f"prefill {depth}": t["prefill_tokens_per_s"], f"decode after {depth}": t["decode_tokens_per_s"]}, quiet


def peer_at(program, model, threads, depth, *calls):
    """The speeds of llama-bench calls whose first measures the prompt and whose last the answer."""
    speeds, all_quiet = [], True
    for more in calls:
        out, _, _, quiet = run([program, "-m", model, "-t", str(threads), "-r", "1", "-o", "json", *more], **HUGE)
        speeds += [r["samples_ts"][0] for r in json.loads(out)]
        all_quiet = all_quiet and quiet
    return {f"prefill {depth}": speeds[0], f"decode after {depth}": speeds[-1]}, all_quiet


def depth_table(a):
    table = {}
    lc, ik = os.environ.get("CRAYON_LLAMA_BENCH"), os.environ.get("CRAYON_IK_BENCH")
    for d in (int(x) for x in a.depths.split(",")):
        r = {"crayon": lambda: ours_at(a.model, a.threads, d, "f16"),
             "crayon, kv q8_0": lambda: ours_at(a.model, a.threads, d, "q8_0")}
        if ik:
            r["ik_llama.cpp"] = lambda: peer_at(ik, a.model, a.threads, d, ["-rtr", "1", "-fa", "1", "-p", str(d), "-n", "0",
                                                                            "-gp", f"{d},{ANSWER}"])
        if lc:
            r["llama.cpp"] = lambda: peer_at(lc, a.model, a.threads, d, ["-lm", "none", "-p", str(d), "-n", "0"],
                                             ["-lm", "none", "-p", "0", "-n", str(ANSWER), "-d", str(d)])
        table.update(collect(a.rounds, r))
    return table


# ---- sequences ----

def ours_together(model, threads, n):
    t, quiet = crayon_bench(model, threads, "--prefill", "1", "--decode", "64", "--depth", "128", "--sequences", str(n))
    return {f"sequences together {n}": t["decode_tokens_per_s"]}, quiet


def peer_together(program, model, threads, n):
    out, _, _, quiet = run([program, "-m", model, "-t", str(threads), "-tb", str(threads), "-c", "2048", "-npp", "128",
                            "-ntg", "64", "-npl", str(n), "--output-format", "jsonl"], **HUGE)
    row = [json.loads(line) for line in out.splitlines() if line.startswith("{")][-1]
    return {f"sequences together {n}": row["speed_tg"]}, quiet


def sequences_table(a):
    table, lc = {}, os.environ.get("CRAYON_LLAMA_BATCHED")
    for n in (1, 4, 8):
        r = {"crayon": lambda: ours_together(a.model, a.threads, n)}
        if lc:
            r["llama.cpp"] = lambda: peer_together(lc, a.model, a.threads, n)
        table.update(collect(a.rounds, r))
    return table


# ---- palettes ----

def palette_table(a):
    table = {}
    for rank in (8, 64):
        out, _, _, quiet = run([ENGINE, a.model, "-t", str(a.threads), "-k", str(rank), "-r", str(a.rounds), "-p", "256",
                                "-n", "64"])
        t = json.loads(out)
        for what in ("prefill", "decode"):
            table[f"{what}, share of the speed, rank {rank}"] = {"crayon": spread([(t[f"{what}_share"], quiet)])}
    if a.pool:
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as f:
            for i in range(8): # some 60 tokens each
                f.write(json.dumps({"prompt": f"The keeper wrote the names of all ships that passed into a book, with the hour, the "
                                    f"wind and the height of the sea, and on the day number {i} he wrote that nothing had passed but "
                                    f"two gulls, so that the page stayed", "completion": "white until the next morning came"}) + "\n")
            f.flush()
            out, _, _, quiet = run([BLEND, a.model, a.pool, f.name, "-t", str(a.threads), "-r", str(a.rounds)])
        t = json.loads(out)
        table[f"change of a palette of {t['n']}, ms"] = {
            "crayon": spread([(r["apply_ms"], quiet) for r in t["rounds"]])}
        table[f"a step of REFINE, {t['tokens']} tokens, by a prompt"] = {
            "crayon": spread([(r["step_ms"] / r["prompt_ms"], quiet) for r in t["score"]])}
    return table


# ---- the report ----

def svg(path, title, table):
    """One line for each program over the rows that begin alike, such as "prefill 2048"."""
    kinds = {}
    for row, by in table.items():
        kind, _, x = row.rpartition(" ")
        for name, v in by.items():
            if x.isdigit():
                kinds.setdefault(kind, {}).setdefault(name, []).append((int(x), v))
    colours, height, y, lines = ["#c2410c", "#f59e0b", "#64748b", "#94a3b8"], 160, 40, []
    for kind, by in kinds.items():
        xs = sorted({x for points in by.values() for x, _ in points})
        top = max(v["max"] for points in by.values() for _, v in points)
        place = {x: 60 + 420 * i / max(1, len(xs) - 1) for i, x in enumerate(xs)}
        lines.append(f'<text x="8" y="{y}" font-weight="bold">{kind}, tokens/s</text>')
        for x in xs:
            lines.append(f'<text x="{place[x] - 12:.0f}" y="{y + height + 24}">{x}</text>')
        for (name, points), colour in zip(by.items(), colours):
            at = [(place[x], y + 10 + height * (1 - v["median"] / top), v) for x, v in points]
            lines.append(f'<path d="M{" L".join(f"{px:.0f} {py:.1f}" for px, py, _ in at)}" stroke="{colour}" '
                         'fill="none" stroke-width="2"/>')
            for px, py, v in at:
                lines.append(f'<circle cx="{px:.0f}" cy="{py:.1f}" r="3" fill="{colour}"/>')
            lines.append(f'<text x="500" y="{at[-1][1] + 4:.0f}" fill="{colour}">{name} {at[-1][2]["median"]:.0f}</text>')
        y += height + 60
    with open(path, "w") as f:
        f.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="680" height="{y}" font-family="sans-serif" font-size="12">\n'
                f'<rect width="680" height="{y}" fill="#fff"/>\n<text x="8" y="18" font-size="14">{title}</text>\n'
                + "\n".join(lines) + "\n</svg>\n")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("table", choices=["depth", "sequences", "palette"])
    p.add_argument("model")
    p.add_argument("--rounds", type=int, default=0)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--depths", default="2048,4096,8192")
    p.add_argument("--pool")
    p.add_argument("--out")
    a = p.parse_args()
    a.rounds = a.rounds or {"depth": 1, "sequences": 5, "palette": 15}[a.table]
    table = {"depth": depth_table, "sequences": sequences_table, "palette": palette_table}[a.table](a)
    for row, by in table.items():
        best = max((v["median"] for name, v in by.items() if not name.startswith("crayon")), default=0)
        for name, v in by.items():
            ratio = f"  {v['median'] / best:5.2f} x the best peer" if best and name.startswith("crayon") else ""
            print(f"{row:36s} {name:18s} {v['median']:10.2f} ({v['min']:.2f}-{v['max']:.2f}, n={v['n']}, "
                  f"busy={v['busy']}){ratio}")
    if a.out:
        title = f"{os.path.basename(a.model)}, {a.threads} thread{'s' * (a.threads > 1)}"
        if a.table != "palette":
            svg(a.out.removesuffix(".json") + ".svg", title, table)
        with open(a.out, "w") as f:
            json.dump({"machine": machine(), "command": " ".join(os.path.basename(x) for x in sys.argv), "table": table}, f,
                      indent=1)
            f.write("\n")


if __name__ == "__main__":
    main()
