#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Development only: are the known accuracies of a prototype pool reproduced by `crayon eval`?

usage: run.py --crayon PROGRAM --model MODEL.gguf --pool POOL.gguf --data FOLDER --out FOLDER
              [--jobs 8] [--threads 2] [--share 1.0] [--seed 1] [--compare-only]

FOLDER of --data holds eval.jsonl.xz and expected.json; POOL.gguf is made by
tools/convert_prototype_pool.py. Every task is one `crayon eval` whose JSON stays in the folder of
--out, so a stopped run goes on where it was. --share takes whole tasks, drawn by seed. The result,
OUT/result.json, compares macro accuracy per group with the expected one over the same tasks; the
program ends with 1 if a group of a complete run is off by more than 0.5 points. Standard library only.
"""
import argparse
import collections
import concurrent.futures
import json
import lzma
import os
import random
import subprocess
import sys
import time

ROWS = {  # row of crayon eval: row of expected.json
    "base": "base",
    "oracle": "prototype pool, each pool task's own weights (mean weights elsewhere)",
    "mean": "prototype pool, mean of the pool tasks' weights",
    "nearest:qx": "prototype pool, nearest by q_x",
    "knn:qx": "prototype pool, kNN softmax(sim/0.03) by q_x",
}


def split_tasks(data, out):
    """One file per task; returns {task: (group, test rows)} in the order of the file."""
    lines, tasks = collections.OrderedDict(), collections.OrderedDict()
    with lzma.open(os.path.join(data, "eval.jsonl.xz"), "rt", encoding="utf-8") as f:
        for line in f:
            row = json.loads(line)
            lines.setdefault(row["task"], []).append(line)
            group, n = tasks.get(row["task"], (row["group"], 0))
            tasks[row["task"]] = (group, n + (row["split"] == "test"))
    for task, rows in lines.items():
        path = os.path.join(out, task + ".test.jsonl")
        if not os.path.exists(path):
            with open(path, "w", encoding="utf-8") as f:
                f.writelines(rows)
    return tasks


def evaluate(args, task):
    """Runs one task unless its result is there. Returns the text of an error, or None."""
    path = os.path.join(args.out, task + ".json")
    if os.path.exists(path):
        return None
    command = [args.crayon, "eval", "-m", args.model, "--pool", args.pool, "--solvers",
               "oracle,mean,nearest:qx,knn:qx", "--shots", "8", "--json", "--quiet",
               "-t", str(args.threads), os.path.join(args.out, task + ".test.jsonl")]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        return "%s: exit %d: %s" % (task, run.returncode, run.stderr.strip()[-300:])
    with open(path + ".tmp", "w", encoding="utf-8") as f:
        f.write(run.stdout)
    os.replace(path + ".tmp", path)
    return None


def compare(args, tasks):
    """Per row and group: accuracy in percent of this run and as expected, over the tasks done."""
    with open(os.path.join(args.data, "expected.json"), encoding="utf-8") as f:
        expected = json.load(f)
    done, tokens, seconds = {}, 0, 0.0
    for task in tasks:
        path = os.path.join(args.out, task + ".json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                done[task] = json.load(f)
            tokens += done[task]["tokens"]
            seconds += done[task]["seconds"]
    table, worst = [], 0.0
    for row, name in ROWS.items():
        for group in ("mmlu", "unseen", "pool"):
            of = [t for t in done if tasks[t][0] == group]
            if not of:
                continue
            got = [100 * done[t]["rows"][row]["task"][t] for t in of]
            want = [100 * expected[name]["task"][t] for t in of]
            rows_off = sum(abs(g - w) / 100 * tasks[t][1] for g, w, t in zip(got, want, of))
            diff = sum(got) / len(of) - sum(want) / len(of)
            worst = max(worst, abs(diff))
            table.append({"row": row, "group": group, "tasks": len(of),
                          "got": round(sum(got) / len(of), 3),
                          "expected": round(sum(want) / len(of), 3), "difference": round(diff, 3),
                          "largest_task_difference": round(max(abs(g - w) for g, w in zip(got, want)), 2),
                          "net_rows_that_differ": round(rows_off),
                          "rows": sum(tasks[t][1] for t in of)})
    return {"complete": len(done) == len(tasks), "tasks": len(done), "tokens": tokens,
            "seconds_of_processes": round(seconds, 1), "worst_difference": round(worst, 3),
            "table": table}


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("crayon", "model", "pool", "data", "out"):
        p.add_argument("--" + name, required=name in ("data", "out"))
    p.add_argument("--jobs", type=int, default=8)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--share", type=float, default=1.0)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--compare-only", action="store_true")
    args = p.parse_args()
    os.makedirs(args.out, exist_ok=True)
    tasks = split_tasks(args.data, args.out)
    order = sorted(tasks)
    random.Random(args.seed).shuffle(order)
    order = order[:max(1, round(args.share * len(order)))]
    errors, begin = [], time.time()
    if not args.compare_only:
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            for i, error in enumerate(pool.map(lambda t: evaluate(args, t), order), 1):
                if error:
                    errors.append(error)
                    print(error, file=sys.stderr)
                if i % 10 == 0 or i == len(order):
                    print("%d of %d tasks, %.0f s" % (i, len(order), time.time() - begin),
                          file=sys.stderr)
    result = compare(args, tasks)
    result["wall_seconds"] = round(time.time() - begin, 1)
    with open(os.path.join(args.out, "result.json"), "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)
        f.write("\n")
    print("%-11s %-7s %5s %8s %9s %7s %8s" % ("row", "group", "tasks", "crayon", "expected",
                                              "diff", "rows off"))
    for r in result["table"]:
        print("%-11s %-7s %5d %8.2f %9.2f %+7.2f %4d/%d" % (
            r["row"], r["group"], r["tasks"], r["got"], r["expected"], r["difference"],
            r["net_rows_that_differ"], r["rows"]))
    sys.exit(1 if errors or (result["complete"] and result["worst_difference"] > 0.5) else 0)


if __name__ == "__main__":
    main()
