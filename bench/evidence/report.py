#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""From the raw results of lab.py to tables and charts; writes what docs/evidence.md includes.

usage: report.py RESULTS_DIR MODEL OUT_DIR     (MODEL: smollm2 or 15m; reads RESULTS_DIR/MODEL/*.json; tasks.json there names
the tasks in the order of the bits)

Accuracy is the mean over tasks in percent, averaged over seeds. Intervals: 95 %, paired bootstrap over
tasks and over the rows of each (2,000 draws, the same draws for all rows of a table). Where a row has
variants, the one with the best mean validation accuracy is shown and named; unseen tasks choose nothing.
Needs numpy only.
"""
import glob
import json
import os
import re
import sys

import numpy as np

DRAWS = 2000
# label in the table, job prefix, regular expression of the row's variants, group of labels
ROWS = [
    ("base, 0-shot", "base", r"^base$", "no training"),
    ("base, 5-shot", "base", r"^base 5-shot", "no training"),
    ("one LoRA, r", "lora-r", r"^one LoRA$", "one LoRA"),
    ("one LoRA, N r", "lora-nr", r"^one LoRA$", "one LoRA"),
    ("one LoRA, N r, REFINE over rank groups", "lora-nr", r"^one LoRA, REFINE", "one LoRA"),
    ("LoRAHub", "sep", r"^LoRAHub", "separate adapters"),
    ("AdapterSoup", "sep", r"^AdapterSoup k \d+$", "separate adapters"),
    ("AdapterSoup + REFINE", "sep", r"^AdapterSoup k \d+ \+ REFINE", "separate adapters"),
    ("Arrow", "sep", r"^Arrow$", "separate adapters"),
    ("separate adapters, uniform", "sep", r"^clusters uniform$", "separate adapters"),
    ("centroid: uniform", "cen", r"^centroid uniform$", "centroid pool"),
    ("centroid: NEAREST", "cen", r"^centroid NEAREST$", "centroid pool"),
    ("centroid: SOFTMAX (plain Crayon)", "cen", r"^centroid SOFTMAX$", "centroid pool"),
    ("centroid: MEANW", "cen", r"^centroid MEANW$", "centroid pool"),
    ("centroid: SIMPLEX", "cen", r"^centroid SIMPLEX$", "centroid pool"),
    ("centroid: per query", "cen", r"^centroid per query$", "centroid pool"),
    ("centroid: PICK", "cen", r"^centroid PICK$", "centroid pool"),
    ("centroid: REFINE", "cen", r"^centroid REFINE", "centroid pool"),
    ("library: uniform", "lib", r"^uniform$", "library pool"),
    ("library: MEAN", "lib", r"^MEAN$", "library pool"),
    ("library: NEAREST, q_x", "lib", r"^NEAREST q_x$", "library pool"),
    ("library: NEAREST, middle", "lib", r"^NEAREST middle$", "library pool"),
    ("library: KNN, q_x", "lib", r"^KNN q_x$", "library pool"),
    ("library: KNN, middle", "lib", r"^KNN middle$", "library pool"),
    ("library: per-query KNN", "lib", r"^per query", "library pool"),
    ("library: PICK", "lib", r"^PICK$", "library pool"),
    ("library: REFINE", "lib", r"^REFINE 32$", "library pool"),
    ("library: REFINE, averaged with PICK", "lib", r"^REFINE 32 averaged with PICK$", "library pool"),
    ("library: told which task", "lib", r"^told which task$", "library pool"),
    ("library: tuned weights", "lib", r"^tuned weights", "gradient steps"),
    ("library: blend + gradient steps", "lib", r"^(blend|REFINE) \+ gradient", "gradient steps"),
    ("one LoRA, r + gradient steps", "lora-r", r"^one LoRA \+ gradient", "gradient steps"),
    ("one LoRA, N r + gradient steps (the anchor)", "lora-nr", r"^one LoRA \+ gradient", "gradient steps"),
]
GROUPS = ["validation", "unseen", "mmlu", "unseen + mmlu", "pool"]


class Results:
    def __init__(self, folder):
        self.jobs = {}
        for path in sorted(glob.glob(folder + "/*.json")):
            name = os.path.basename(path)[:-5]
            if name != "tasks":
                self.jobs[name] = json.load(open(path))
        self.all = json.load(open(folder + "/tasks.json"))  # [[task, group, test rows]] in the order of the data
        # the P3 prompts train pools but are not part of the tables
        mine = [t for t in self.all if not t[0].startswith("p3")]
        self.names, self.group = [t[0] for t in mine], {t[0]: t[1] for t in mine}
        self.rows = {t[0]: t[2] for t in self.all}
        rng = np.random.default_rng(1)
        self.counts = [rng.multinomial(t[2], np.full(t[2], 1 / t[2]), DRAWS) for t in mine]
        self.draws = {}

    def bits(self, job, row):
        """One 0 or 1 per test row of the tables' tasks."""
        raw = np.unpackbits(np.frombuffer(bytes.fromhex(self.jobs[job]["rows"][row]["bits"]), np.uint8))
        out, at = [], 0
        for t in self.jobs[job].get("tasks") or [t[0] for t in self.all]:
            if t in self.group:
                out.append(raw[at:at + self.rows[t]])
            at += self.rows[t]
        return np.concatenate(out)

    def seeds(self, prefix):
        if prefix == "base":
            return ["base"] if "base" in self.jobs else []
        return sorted(j for j in self.jobs if re.fullmatch(prefix + r"-seed\d+", j))

    def accuracy(self, cells):
        """Mean over (job, row) cells: per task, and per task and draw."""
        b = np.mean([self.bits(*c) for c in cells], 0)
        exact, drawn = [], []
        at = 0
        for counts in self.counts:
            k = counts.shape[1]
            x = b[at:at + k]
            exact.append(x.mean())
            drawn.append(counts @ x / k)
            at += k
        return np.array(exact), np.array(drawn)

    def members(self, g):
        return np.array([k for k, n in enumerate(self.names) if self.group[n] in ([g] if g != "unseen + mmlu" else ["unseen", "mmlu"])])

    def macro(self, acc, g):
        of = self.members(g)
        if g not in self.draws:
            self.draws[g] = np.random.default_rng(2).multinomial(len(of), np.full(len(of), 1 / len(of)), DRAWS) / len(of)
        return 100 * acc[0][of].mean(), 100 * (self.draws[g] * acc[1][of].T).sum(1)

    def pick(self, prefix, pattern):
        """(variant, cells): the variant with the best mean validation accuracy over the seeds."""
        jobs = self.seeds(prefix)
        if prefix == "base" and "5-shot" in pattern and jobs:
            cells = [("base", r) for r in self.jobs["base"]["rows"] if re.search(pattern, r)]
            return "", cells
        per = {}
        for j in jobs:
            for r in self.jobs[j]["rows"]:
                if re.search(pattern, r) and "examples" not in r.split(",")[-1] and "another" not in r:
                    per.setdefault(r, []).append((j, r))
        if not per:
            return None, []
        most = max(map(len, per.values()))
        full = {r: c for r, c in per.items() if len(c) == most}
        score = {r: np.mean([self.jobs[j]["rows"][r]["macro"]["validation"] for j, r in c]) for r, c in full.items()}
        best = max(score, key=score.get)
        return best if len(full) > 1 else "", full[best]


def interval(x):
    return np.percentile(x, 2.5), np.percentile(x, 97.5)


def main(folder, model, out):
    res = Results(os.path.join(folder, model))
    table, acc = [], {}
    for label, prefix, pattern, kind in ROWS:
        variant, cells = res.pick(prefix, pattern)
        if not cells:
            continue
        acc[label] = res.accuracy(cells)
        row = {"row": label, "kind": kind, "variant": variant, "seeds": len(cells)}
        for g in GROUPS:
            m, d = res.macro(acc[label], g)
            row[g] = [round(float(x), 2) for x in (m, *interval(d))]
            per = [100 * res.accuracy([c])[0][res.members(g)].mean() for c in cells]
            row[g + " by seed"] = [round(float(x), 2) for x in per]
        table.append(row)
    against = {}
    for ref in ("one LoRA, r", "one LoRA, N r", "one LoRA, N r, REFINE over rank groups", "one LoRA, N r + gradient steps (the anchor)"):
        if ref not in acc:
            continue
        for label in acc:
            for g in GROUPS:
                m0, d0 = res.macro(acc[ref], g)
                m1, d1 = res.macro(acc[label], g)
                against.setdefault(ref, {}).setdefault(label, {})[g] = [round(float(x), 2) for x in (m1 - m0, *interval(d1 - d0))]
    os.makedirs(out, exist_ok=True)
    json.dump({"model": model, "tasks": {g: len(res.members(g)) for g in GROUPS}, "rows": table, "against": against},
              open(f"{out}/{model}.json", "w"), indent=0)
    with open(f"{out}/{model}.md", "w") as f:
        f.write("| row | seeds | validation | unseen | MMLU | unseen + MMLU | pool |\n|---|---|---|---|---|---|---|\n")
        for r in table:
            cell = lambda g: "%.1f" % r[g][0]
            name = r["row"] + (f" ({r['variant']})" if r["variant"] else "")
            f.write(f"| {name} | {r['seeds']} | {cell('validation')} | {cell('unseen')} | {cell('mmlu')} | "
                    f"{cell('unseen + mmlu')} [{r['unseen + mmlu'][1]:.1f}, {r['unseen + mmlu'][2]:.1f}] | {cell('pool')} [{r['pool'][1]:.1f}, {r['pool'][2]:.1f}] |\n")
        for ref, rows in against.items():
            f.write(f"\nDifference to *{ref}*:\n\n| row | unseen | MMLU | unseen + MMLU | pool |\n|---|---|---|---|---|\n")
            for label, v in rows.items():
                if label != ref:
                    f.write(f"| {label} | " + " | ".join("%+.1f [%+.1f, %+.1f]" % tuple(v[g]) for g in ("unseen", "mmlu", "unseen + mmlu", "pool")) + " |\n")
    print(open(f"{out}/{model}.md").read())


main(*sys.argv[1:])
