#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Rows that need no new run of a model: what lab.py's option scores give when they are added up or calibrated.

usage: combine.py PACK.npz SCORES_DIR RESULTS_DIR/MODEL

For each seed s writes RESULTS_DIR/MODEL/ens-seedS.json from SCORES_DIR/{lib,lora-nr}-seedS.scores.npz:
  REFINE + N r        log-probabilities of the options, 0.7 of the blend's and 0.3 of one LoRA N r's
  REFINE, calibrated  minus the mean log-share of the same option text over the task's questions (labels that stand
                      in at least a quarter of them; it sees the test questions, not their answers)
  both
Short answers stay as REFINE answers them: sums of two models' scores do not say what either would generate.
"""
import collections
import json
import sys

import numpy as np

from report import Results


def main(pack, scores, results):
    res = Results(results)
    d = dict(np.load(pack))
    rows, options, ids = d["rows"], d["options"], d["ids"]
    names = [str(n) for n in d["names"]]
    task, first, count, size, text = [], [], [], [], []
    right, choices = [], []
    for k, name in enumerate(res.names):
        for r in rows[(rows[:, 0] == names.index(name)) & (rows[:, 1] == 2)]:
            o = options[r[8]:r[8] + (r[9] if r[11] else 1)]
            task.append(k)
            first.append(len(size))
            count.append(len(o))
            right.append(r[10] if r[11] else 0)
            choices.append(bool(r[11]))
            size += o[:, 2].tolist()
            text += [(k, *ids[a:a + n].tolist()) for a, n, _ in o]
    size, choices = np.array(size, float), np.array(choices)
    per_task = np.bincount(task)
    best = lambda v: np.array([v[a:a + n].argmax() for a, n in zip(first, count)]) == right

    def calibrated(per):
        share = np.concatenate([8 * per[a:a + n] - np.logaddexp.reduce(8 * per[a:a + n]) for a, n in zip(first, count)])
        total, seen = collections.defaultdict(float), collections.Counter()
        for key, x in zip(text, share):
            total[key] += x
            seen[key] += 1
        off = np.array([total[k] / seen[k] if seen[k] >= max(5, per_task[k[0]] / 4) else np.nan for k in text])
        return np.concatenate([s if np.isnan(o).any() else s - o for s, o in ((share[a:a + n], off[a:a + n]) for a, n in zip(first, count))])

    for seed in (1, 2, 3):
        score = lambda job, row: np.load(f"{scores}/{job}-seed{seed}.scores.npz")[row].astype(float) / size
        blend, lora = score("lib", "REFINE 32"), score("lora-nr", "one LoRA")
        keep, out = res.bits(f"lib-seed{seed}", "REFINE 32"), {}
        mixed = 0.7 * blend + 0.3 * lora
        for name, v in (("REFINE + N r", mixed), ("REFINE, calibrated", calibrated(blend)), ("REFINE + N r, calibrated", calibrated(mixed)),
                        ("N r, calibrated", calibrated(lora))):
            own = res.bits(f"lora-nr-seed{seed}", "one LoRA") if name.startswith("N r") else keep
            bits = np.where(choices, best(v), own).astype(np.uint8)
            out[name] = {"bits": np.packbits(bits).tobytes().hex(), "macro": {}}
            for g in ("validation", "unseen", "mmlu", "pool"):
                of = [bits[np.array(task) == k].mean() for k, n in enumerate(res.names) if res.group[n] == g]
                out[name]["macro"][g] = round(100 * float(np.mean(of)), 2)
        with open(f"{results}/ens-seed{seed}.json", "w") as f:
            json.dump({"rows": out, "tasks": res.names}, f, separators=(",", ":"))
            f.write("\n")


main(*sys.argv[1:])
