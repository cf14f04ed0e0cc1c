#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`crayon blend` itself, as a user runs it, on the validation tasks that its pool does not know.

usage: command.py CRAYON TASK_DIR split.json MODEL.gguf POOL.gguf OUTPUT.json [SEEDS [ROWS]]

Per task and seed: 16 lines of the train split, 8 of them examples and 8 held out; the palettes of the levels refined
and tuned, each without and with (+) worked examples to be tried; all of them and the base model on 50 test rows by
`crayon eval`. OUTPUT is written after each task; a stopped run goes on, rows that are there stay. Needs gguf.
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


def main(crayon, tasks, split, model, pool, output, seeds="1", rows="refined,refined+,tuned,tuned+"):
    known = {str(x)[:44] for x in gguf.GGUFReader(pool).fields["crayon.pool.tasks"].contents()}
    names = [t for t in json.load(open(split))["validation"] if t[:44] not in known]
    crayon, model, pool, output = map(os.path.abspath, (crayon, model, pool, output))
    out = json.load(open(output)) if os.path.exists(output) else {}

    def run(*a):
        return json.loads(subprocess.run([crayon, *a, "-q", "-m", model, "--json"], capture_output=True, text=True, check=True).stdout)

    def measure(t, seed, row, missing, work):
        have = read(next(p for p in (f"{tasks}/{t}.{s}.jsonl.xz" for s in ("train", "train_small", "dev")) if os.path.exists(p)), t)
        test = read(f"{tasks}/{t}.test.jsonl.xz", t)
        random.Random(f"lines {t} {seed}").shuffle(have)
        random.Random(f"test {t}").shuffle(test)
        for name, lines in (("mine", have[:16]), ("new.test", test[:50])):
            with open(f"{work}/{name}.jsonl", "w", encoding="utf-8") as f:
                f.writelines(lines)
        row["rows"] = len(test[:50])
        for name in missing:
            palette = f"{work}/{name}.palette"
            b = run("blend", "--pool", pool, "--examples", f"{work}/mine.jsonl", "--held-out", "0.5", "--seed", seed, "-o", palette,
                    "--level", name.rstrip("+"), "--worked", "5" if name[-1] == "+" else "0")
            e = run("eval", f"{work}/new.test.jsonl", "--palette", palette, "--shots", "0")
            score = {n: next(iter(r["task"].values())) for n, r in e["rows"].items()}
            row["base"], row[name] = score["base"], score["palette"]
            row["kept by " + name] = (b["level"] if b.get("helps", True) else "base") + ("+" if b["worked_examples"] else "")
            row["seconds"] = b.get("tuned_seconds", row.get("seconds"))

    with tempfile.TemporaryDirectory() as work:
        for seed in seeds.split(","):
            for t in names:
                row = out.get(f"{t} {seed}", {})
                missing = [n for n in rows.split(",") if n not in row]
                if not missing:
                    continue
                measure(t, seed, row, missing, work)
                out[f"{t} {seed}"] = row
                with open(output + ".new", "w") as f:
                    json.dump(out, f, indent=0)
                    f.write("\n")
                os.replace(output + ".new", output)
                print(t, seed, row, flush=True)


main(*sys.argv[1:])
