#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Does it tell that an answer is wrong when other adapters of the same device answer otherwise? SmolLM2, multiple choice.

usage: route_agreement.py PACK.npz SCORES_DIR RESULTS_DIR/smollm2 OUTPUT.json docs/evidence.md

The device answers by REFINE, seed 1; the others are KNN, one LoRA N r, one LoRA r and the centroid pool. AUROC of "the
answer is wrong"; learned rules are fitted on one half of the pool tasks. Intervals: 95 %, bootstrap over tasks and rows.
"""
import json
import sys

import numpy as np

from report import Results
from route_study import fit

OTHERS = (("lib", "KNN middle"), ("lora-nr", "one LoRA"), ("lora-r", "one LoRA"), ("cen", "centroid SOFTMAX"))
DRAWS = 500


def auroc(score, wrong):
    order = np.argsort(np.lexsort((np.random.default_rng(1).random(len(score)), score)))  # ties by lot
    n = wrong.sum()
    return (order[wrong == 1].mean() - (n - 1) / 2) / (len(wrong) - n)


def main(pack, scores, results, output, page):
    res, d = Results(results), dict(np.load(pack))
    rows, options, names = d["rows"], d["options"], [str(n) for n in d["names"]]
    per = {}
    for job, row in (("lib", "REFINE 32"),) + OTHERS:
        per[job + row] = np.load(f"{scores}/{job}-seed1.scores.npz")[row].astype(float)
    task, wrong, x, more, at = [], [], [], [], 0
    for name in res.names:
        for r in rows[(rows[:, 0] == names.index(name)) & (rows[:, 1] == 2)]:
            n = int(r[9]) if r[11] else 1
            size = options[r[8]:r[8] + n, 2]
            p = []
            for v in per.values():
                z = np.exp(8 * (v[at:at + n] / size - (v[at:at + n] / size).max()))
                p.append(z / z.sum())
            at += n
            if n < 2:
                continue
            pick = int(p[0].argmax())
            q = np.sort(p[0])[::-1]
            task.append(name)
            wrong.append(pick != r[10])
            x.append([q[0], q[0] - q[1], -(q * np.log(q + 1e-12)).sum(), np.log(n)])
            more.append([float(o.argmax() == pick) for o in p[1:]] + [o[pick] for o in p[1:]])
    task, wrong, x, more = np.array(task), np.array(wrong, float), np.array(x), np.array(more)
    group = np.array([res.group[t] for t in task])
    pool = np.unique(task[group == "pool"])
    half = set(np.random.default_rng(1).permutation(pool)[:len(pool) // 2])
    train = np.array([t in half for t in task])
    both = np.c_[x, more]
    rules = {"confidence": 1 - x[:, 0], "number of others that agree": -more[:, :4].sum(1), "mean probability of the answer, all five": -(x[:, 0] + more[:, 4:].sum(1)),
             "learned (confidence, margin, entropy, options)": fit(x[train], wrong[train], 10.0)(x), "learned, with the others": fit(both[train], wrong[train], 10.0)(both)}
    sets = {"pool tasks that no rule saw": (group == "pool") & ~train, "unseen": group == "unseen", "MMLU": group == "mmlu"}
    out, cells = {}, {n: [] for n in rules}
    for label, keep in sets.items():
        idx, rng = np.flatnonzero(keep), np.random.default_rng(2)
        of = [idx[task[idx] == t] for t in np.unique(task[idx])]
        drawn = {n: [] for n in rules}
        for _ in range(DRAWS):
            i = np.concatenate([rng.choice(of[k], len(of[k])) for k in rng.integers(len(of), size=len(of))])
            for n, s in rules.items():
                drawn[n].append(auroc(s[i], wrong[i]))
        out[label] = {"rows": len(idx), "wrong": round(float(wrong[idx].mean()), 4)}
        for n, s in rules.items():
            diff = np.percentile(np.array(drawn[n]) - drawn["confidence"], (2.5, 97.5))
            out[label][n] = [round(float(v), 4) for v in (auroc(s[idx], wrong[idx]), *diff)]
            cells[n].append("%.3f" % out[label][n][0] + ("" if n == "confidence" else " (%+.3f [%+.3f, %+.3f])" % (out[label][n][0] - out[label]["confidence"][0], *diff)))
    text = ["| AUROC of \"the answer is wrong\", against confidence | " + " | ".join("%s (%d rows)" % (s, out[s]["rows"]) for s in sets) + " |", "|---|" + "---|" * len(sets)]
    text += ["| %s | %s |" % (n, " | ".join(c)) for n, c in cells.items()]
    with open(output, "w") as f:
        json.dump(out, f)
    page_text = open(page).read()
    a = page_text.index("<!-- agreement -->\n") + len("<!-- agreement -->\n")
    with open(page, "w") as f:
        f.write(page_text[:a] + "\n".join(text) + "\n" + page_text[page_text.index("<!-- end -->", a):])
    print("\n".join(text))


main(*sys.argv[1:])
