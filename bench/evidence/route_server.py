#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What another model than the laboratory's answers to a sample of the multiple-choice test rows, by `crayon eval` on this machine.

usage: route_server.py CRAYON MODEL.gguf TASK_DIR split.json OUTPUT.json [ROWS]

Of each task at most ROWS (default 30) of the rows that the laboratory tests, drawn by a fixed seed; without and with the user's 8
examples of seed 1 in front. OUTPUT: per task its group, the numbers of the rows, and a 1 or 0 for each and both ways. A stopped
run goes on.
"""
import json
import os
import random
import subprocess
import sys
import tempfile

from pack import TEST, drawn

WAYS = {"alone": "base", "behind 8 examples": "base, 8 worked"}


def main(crayon, model, tasks, split, output, most="30"):
    out = json.load(open(output)) if os.path.exists(output) else {"model": os.path.basename(model), "rows": int(most), "tasks": {}}
    for g, stem, task, have, given, tests in drawn(tasks, json.load(open(split))):
        tests = tests[:TEST[g]]
        if stem == "p3" or task in out["tasks"] or not all(r.get("choices") for r in tests):
            continue
        picked = sorted(random.Random("server " + task).sample(range(len(tests)), min(int(most), len(tests))))
        with tempfile.TemporaryDirectory() as work:
            with open(work + "/rows.jsonl", "w", encoding="utf-8") as f:
                for split_name, rows in (("examples", have[:given][:8]), ("test", [tests[k] for k in picked])):
                    f.writelines(json.dumps({**r, "task": "t", "split": split_name}) + "\n" for r in rows)
            run = subprocess.run([crayon, "eval", "-q", "-m", model, "--shots", "8", "--worked", "8", "--json", work + "/rows.jsonl"],
                                 capture_output=True, text=True, check=True)
        rows = json.loads(run.stdout)["rows"]
        out["tasks"][task] = {"group": g, "rows": picked, **{k: rows[r]["right"]["t"] for k, r in WAYS.items() if r in rows}}
        assert all(len(out["tasks"][task][k]) == len(picked) for k in WAYS if k in out["tasks"][task]), task
        with open(output + ".new", "w") as f:
            json.dump(out, f)
            f.write("\n")
        os.replace(output + ".new", output)
    for g in ("pool", "validation", "unseen", "mmlu"):
        of = [t for t in out["tasks"].values() if t["group"] == g]
        mean = lambda k: sum(t[k].count("1") / len(t[k]) for t in of if k in t) / max(1, len(of))
        print(g, len(of), "tasks", {k: round(100 * mean(k), 1) for k in WAYS})


if __name__ == "__main__":
    main(*sys.argv[1:])
