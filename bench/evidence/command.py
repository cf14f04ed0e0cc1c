#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`crayon blend --level tuned` itself, as a user runs it, on the validation tasks that its pool does not know.

usage: command.py CRAYON TASK_DIR split.json MODEL.gguf POOL.gguf OUTPUT.json [SEEDS]

Per task and seed: 16 lines of the train split, 8 of them examples and 8 held out; the palettes of the level refined
and of the level tuned; both and the base model on 50 test rows by `crayon eval`. OUTPUT is written after each task; a
stopped run goes on. Needs gguf.
"""
import json
import lzma
import os
import random
import subprocess
import sys
import tempfile

import gguf


def read(path, task):
    with lzma.open(path, "rt", encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    return [json.dumps({**r, "task": task}) + "\n" for r in rows if r.get("answer") not in (None, "")]


def main(crayon, tasks, split, model, pool, output, seeds="1"):
    known = {str(x)[:44] for x in gguf.GGUFReader(pool).fields["crayon.pool.tasks"].contents()}
    names = [t for t in json.load(open(split))["validation"] if t[:44] not in known]
    crayon, model, pool, output = map(os.path.abspath, (crayon, model, pool, output))
    out = json.load(open(output)) if os.path.exists(output) else {}

    def run(*a):
        return json.loads(subprocess.run([crayon, *a, "-q", "-m", model, "--json"], capture_output=True, text=True, check=True).stdout)

    with tempfile.TemporaryDirectory() as work:
        for seed in seeds.split(","):
            for t in names:
                key = f"{t} {seed}"
                if key in out:
                    continue
                have = read(next(p for p in (f"{tasks}/{t}.{s}.jsonl.xz" for s in ("train", "train_small", "dev")) if os.path.exists(p)), t)
                test = read(f"{tasks}/{t}.test.jsonl.xz", t)
                random.Random(f"lines {t} {seed}").shuffle(have)
                random.Random(f"test {t}").shuffle(test)
                for name, lines in (("mine", have[:16]), ("new.test", test[:50])):
                    with open(f"{work}/{name}.jsonl", "w", encoding="utf-8") as f:
                        f.writelines(lines)
                row = {"rows": len(test[:50])}
                for level in ("refined", "tuned"):
                    palette = f"{work}/{level}.palette"
                    b = run("blend", "--pool", pool, "--examples", f"{work}/mine.jsonl", "--held-out", "0.5", "--seed", seed, "-o", palette, "--level", level)
                    e = run("eval", f"{work}/new.test.jsonl", "--palette", palette, "--shots", "0")
                    score = {n: next(iter(r["task"].values())) for n, r in e["rows"].items()}
                    row["base"], row[level] = score["base"], score["palette"]
                    row["kept by " + level] = b["level"] if b.get("helps", True) else "base"
                row["seconds"] = b.get("tuned_seconds")
                out[key] = row
                with open(output + ".new", "w") as f:
                    json.dump(out, f, indent=0)
                    f.write("\n")
                os.replace(output + ".new", output)
                print(key, row, flush=True)


main(*sys.argv[1:])
