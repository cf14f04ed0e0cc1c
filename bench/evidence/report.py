#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""From the raw results of lab.py to the tables and charts of docs/evidence.md.

usage: report.py RESULTS_DIR docs/evidence.md

Fills what stands between `<!-- NAME -->` and `<!-- end -->` in the page, and draws the charts beside it.
Reads RESULTS_DIR/{smollm2,15m}/*.json; tasks.json there names the tasks in the order of the bits.

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

import choose

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
    ("library: REFINE + one LoRA N r", "ens", r"^REFINE \+ N r$", "library pool"),
    ("library: REFINE, calibrated", "ens", r"^REFINE, calibrated$", "library pool"),
    ("library: REFINE + one LoRA N r, calibrated", "ens", r"^REFINE \+ N r, calibrated$", "library pool"),
    ("one LoRA, N r, calibrated", "ens", r"^N r, calibrated$", "one LoRA"),
    ("library: told which task", "lib", r"^told which task$", "library pool"),
    ("library: tuned weights", "lib", r"^tuned weights", "gradient steps"),
    ("library: blend + gradient steps", "lib", r"^(blend|REFINE) \+ gradient", "gradient steps"),
    ("library: REFINE + 8 gentle steps", "lib", r"^REFINE \+ gradient lr 0.0003 steps 8$", "gradient steps"),
    ("one LoRA, r + gradient steps", "lora-r", r"^one LoRA \+ gradient", "gradient steps"),
    ("one LoRA, N r + gradient steps (the anchor)", "lora-nr", r"^one LoRA \+ gradient", "gradient steps"),
    ("the same at gentle rates", "anr", r"^one LoRA \+ gradient", "gradient steps"),
]
GROUPS = ["validation", "unseen", "mmlu", "unseen + mmlu", "pool"]


class Results:
    def __init__(self, folder):
        self.jobs = {}
        for path in sorted(glob.glob(folder + "/*.json")):
            name = os.path.basename(path)[:-5]
            if name != "tasks":
                self.jobs[name] = json.load(open(path))
        self.all = json.load(open(folder + "/tasks.json"))  # [[task, group, test rows, kind of answer]] in the order of the data
        # the P3 prompts train pools but are not part of the tables
        mine = [t for t in self.all if not t[0].startswith("p3")]
        self.names, self.group = [t[0] for t in mine], {t[0]: t[1] for t in mine}
        self.rows, self.kind = {t[0]: t[2] for t in self.all}, {t[0]: t[3] for t in mine}
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
        return self.of_bits(np.mean([self.bits(*c) for c in cells], 0))

    def has(self, job, row):
        return job in self.jobs and row in self.jobs[job]["rows"]

    def of_bits(self, b):
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
        if not len(of):  # of a tiny set
            return np.nan, np.full(DRAWS, np.nan)
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


def difference(x, y):
    """Of two macro(): the mean and its interval, as text."""
    return "%+.1f [%+.1f, %+.1f]" % (x[0] - y[0], *interval(x[1] - y[1]))


def svg(path, title, subtitle, rows, panels):
    """Rows of points with 95 % intervals, one panel per group of tasks. rows: [(label, kind, {panel: (mean, low, high)})]."""
    left, width, line = 330, 250, 17
    height = 70 + line * len(rows) + 40
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">' % (left + len(panels) * (width + 30), height),
           '<rect width="100%" height="100%" fill="#fff"/>', '<text x="10" y="20" font-size="15">%s</text>' % title,
           '<text x="10" y="37" fill="#555">%s</text>' % subtitle]
    kinds = {"no training": "#777", "one LoRA": "#b5651d", "separate adapters": "#8a5a9e", "centroid pool": "#3a8a5c",
             "library pool": "#1f5fa8", "gradient steps": "#c03a3a"}
    for k, panel in enumerate(panels):
        v = [r[2][panel] for r in rows]
        lo, hi = np.floor(min(x[1] for x in v) / 5) * 5, np.ceil(max(x[2] for x in v) / 5) * 5
        x0 = left + k * (width + 30)
        at = lambda y: x0 + (y - lo) / (hi - lo) * width
        out.append('<text x="%d" y="56" font-weight="bold">%s</text>' % (x0, panel))
        for t in np.arange(lo, hi + 1, 5):
            out.append('<line x1="%.1f" x2="%.1f" y1="62" y2="%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle" fill="#555">%d</text>'
                       % (at(t), at(t), height - 34, at(t), height - 20, t))
        for i, (label, kind, values) in enumerate(rows):
            y, c = 76 + line * i, kinds[kind]
            m, a, b = values[panel]
            if k == 0:
                out.append('<text x="%d" y="%d" text-anchor="end" fill="%s">%s</text>' % (left - 12, y + 4, c, label))
            out.append('<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="%s" stroke-width="1.5"/><circle cx="%.1f" cy="%d" r="3.5" fill="%s"/>'
                       % (at(a), at(b), y, y, c, at(m), y, c))
    out.append('<text x="10" y="%d" fill="#555">accuracy in %%, mean over tasks and seeds; bars: 95 %%, bootstrap over tasks and rows</text></svg>' % (height - 4))
    with open(path, "w") as f:
        f.write("\n".join(out) + "\n")


def rows_of(res):
    for label, prefix, pattern, kind in ROWS:
        variant, cells = res.pick(prefix, pattern)
        if cells:
            yield label, kind, variant, cells, res.accuracy(cells)


def main_table(res, svg_path, title):
    """All rows, and their difference to one LoRA of rank N r and of rank r."""
    rows = list(rows_of(res))
    acc = {label: a for label, _, _, _, a in rows}
    out = ["| row | seeds | validation | unseen | MMLU | both | both, against N r | pool | pool, against N r | pool, against r |",
           "|" + "---|" * 10]
    diff = lambda a, b, g: difference(res.macro(a, g), res.macro(b, g))
    points = []
    for label, kind, variant, cells, a in rows:
        m = {g: res.macro(a, g) for g in GROUPS}
        note = re.sub("^(one LoRA, |one LoRA |REFINE |blend |tuned weights )", "", variant).strip("+ ") if variant else ""
        out.append("| %s | %d | %s | %s | %s | %s | %s |" % (
            label + (" (%s)" % note if note else ""), len(cells), " | ".join("%.1f" % m[g][0] for g in GROUPS[:4]),
            diff(a, acc["one LoRA, N r"], "unseen + mmlu"), "%.1f" % m["pool"][0], diff(a, acc["one LoRA, N r"], "pool"), diff(a, acc["one LoRA, r"], "pool")))
        points.append((label, kind, {"unseen tasks and MMLU": (m["unseen + mmlu"][0], *interval(m["unseen + mmlu"][1])),
                                     "new rows of pool tasks": (m["pool"][0], *interval(m["pool"][1]))}))
    svg(svg_path, title, "%d unseen tasks, %d MMLU subjects, %d pool tasks" % tuple(len(res.members(g)) for g in ("unseen", "mmlu", "pool")),
        points, ["unseen tasks and MMLU", "new rows of pool tasks"])
    return "\n".join(out)


def unseen_table(res):
    """Unseen tasks alone, the rows that use labels, against four rows."""
    acc = {label: a for label, _, _, _, a in rows_of(res)}
    refs = ["one LoRA, r", "one LoRA, N r, REFINE over rank groups", "base, 5-shot", "one LoRA, r + gradient steps"]
    refs = [r for r in refs if r in acc]
    out = ["| row | unseen | " + " | ".join("against *%s*" % r for r in refs) + " |", "|---|---|" + "---|" * len(refs)]
    for label in ("library: PICK", "library: REFINE", "library: REFINE, averaged with PICK", "library: tuned weights", "library: blend + gradient steps",
                  "library: REFINE + 8 gentle steps"):
        if label not in acc:
            continue
        m = res.macro(acc[label], "unseen")
        cells = []
        for r in refs:
            cells.append(difference(m, res.macro(acc[r], "unseen")))
        out.append("| %s | %.1f | %s |" % (label, m[0], " | ".join(cells)))
    return "\n".join(out)


def worst_table(res):
    """Tasks that lose most against one LoRA of rank N r."""
    acc = {label: a for label, _, _, _, a in rows_of(res)}
    out = ["| row | tasks | lose more than 3 points | of them beyond noise (95 %) | gain more than 3, beyond noise | the worst |", "|---|---|---|---|---|---|"]
    ref = acc["one LoRA, N r"]
    for label in ("one LoRA, r", "library: KNN, middle", "library: PICK", "library: REFINE", "library: tuned weights", "library: blend + gradient steps",
                  "library: REFINE + 8 gentle steps"):
        if label not in acc:
            continue
        d, b = 100 * (acc[label][0] - ref[0]), 100 * (acc[label][1] - ref[1])
        high, low = np.percentile(b, 97.5, axis=1), np.percentile(b, 2.5, axis=1)
        bad = np.flatnonzero((d < -3) & (high < 0))
        w = int(d.argmin())
        out.append("| %s | %d | %d | %d | %d | %s %+.1f [%+.1f, %+.1f] |" % (label, len(d), (d < -3).sum(), len(bad), ((d > 3) & (low > 0)).sum(), res.names[w], d[w], low[w], high[w]))
    return "\n".join(out)


def cells_of(res, job, row):
    """A job's row, or that of all its seeds."""
    return [(j, row) for j in ([job] if job in res.jobs else []) + res.seeds(job) if row in res.jobs[j]["rows"]]


def one(res, cells):
    a = res.accuracy(cells)
    return " | ".join("%.1f" % res.macro(a, g)[0] for g in ("validation", "unseen", "mmlu", "pool"))


def list_table(res, first, entries):
    """entries: [(label, job, row)]; those that were run."""
    out = ["| %s | validation | unseen | MMLU | pool |" % first, "|---|---|---|---|---|"]
    for label, job, row in entries:
        cells = cells_of(res, job, row)
        if cells:
            out.append("| %s | %s |" % (label, one(res, cells)))
    return "\n".join(out)


FRONT = ", 8 in front"
WORKED = [  # label, rank at run time, job, row
    ("base", "-", "wbase", "base 8-shot"), ("one LoRA, r", "8", "wlora-r", "one LoRA"), ("one LoRA, N r", "256", "wlora-nr", "one LoRA"),
    ("one LoRA, r, 8 gentle steps", "8", "wlora-r", "one LoRA + gradient lr 0.0003 steps 8"),
    ("the same, the steps in chains", "8", "twlora-r", "one LoRA + gradient in chains lr 0.0003 steps 8"),
    ("centroid: SOFTMAX (plain Crayon)", "8", "wcen", "centroid SOFTMAX"),
    ("library: KNN", "8", "wlib", "KNN middle"), ("library: PICK", "8", "wlib", "PICK"), ("library: REFINE, averaged with PICK", "8", "wlib", "REFINE 32 averaged with PICK"),
    ("library: REFINE + 8 gentle steps", "8", "wlib", "REFINE + gradient lr 0.0003 steps 8"),
    ("the same, the steps in chains", "8", "twlib", "REFINE + gradient in chains lr 0.0003 steps 8"),
    ("library with general weights: those", "8", "wgen", "GENERAL"), ("the same: KNN", "8", "wgen", "KNN middle"), ("the same: PICK", "8", "wgen", "PICK"),
    ("the same: REFINE", "8", "wgen", "REFINE 32"), ("the same: REFINE, averaged with PICK", "8", "wgen", "REFINE 32 averaged with PICK"),
    ("the same: REFINE + 8 gentle steps", "8", "twgen", "REFINE + gradient lr 0.0003 steps 8"),
    ("the same, the steps in chains", "8", "twgen", "REFINE + gradient in chains lr 0.0003 steps 8"),
    ("the same, N = 8, SEPARATE: REFINE, averaged with PICK", "64", "wsep", "REFINE 32 averaged with PICK"),
]
CLEAR = [
    ("one LoRA, r", "8", "wlora-r-clear", "one LoRA"), ("one LoRA, N r", "128", "wlora-nr-clear", "one LoRA"),
    ("library: PICK", "8", "wlib-clear", "PICK"), ("library: REFINE, averaged with PICK", "8", "wlib-clear", "REFINE 32 averaged with PICK"),
    ("library with general weights: KNN", "8", "wgen-clear", "KNN middle"), ("the same: PICK", "8", "wgen-clear", "PICK"),
    ("the same: REFINE, averaged with PICK", "8", "wgen-clear", "REFINE 32 averaged with PICK"),
    ("the same: REFINE + 8 gentle steps", "8", "twgen-clear", "REFINE + gradient lr 0.0003 steps 8"),
    ("one LoRA, r, 8 gentle steps", "8", "twlora-r-clear", "one LoRA + gradient lr 0.0003 steps 8"),
    ("one LoRA, r, trained without, none in front", "8", "lora-r-clear", "one LoRA", ""),
    ("the same, 4 steps: the anchor of these tasks", "8", "lora-r-clear", "one LoRA + gradient lr 0.001 steps 4", ""),
]


def worked_table(res, rows, control):
    """Rows trained with worked examples, with 8 of the user's in front; the same without them in brackets. control: the job of
    one LoRA N r trained alike."""
    ref = lambda job, row: res.accuracy([(j, row) for j in res.seeds(job)])
    old, alike = ref("lora-nr", "one LoRA"), ref(control, "one LoRA" + FRONT)
    low, high = (res.macro(ref("lora-r", r), "unseen + mmlu")[0] for r in ("one LoRA", "one LoRA + gradient lr 0.001 steps 4"))
    diff = lambda a, b, g: difference(res.macro(a, g), res.macro(b, g))
    out = ["| row | seeds | rank run | validation | unseen | MMLU | both | both, against N r as before | both, against N r alike | share of the anchor's gain | pool | pool, against N r alike |",
           "|" + "---|" * 12]
    for label, rank, job, row, *front in rows:
        front = front[0] if front else FRONT
        if job == "wbase":
            a, plain, n = res.accuracy([("wbase", "%s seed %d" % (row, s)) for s in (1, 2, 3)]), res.accuracy([("wbase", "base")]), 3
        else:
            a, n = ref(job, row + front), len(res.seeds(job))
            plain = ref(job, row) if front and row in res.jobs[job + "-seed1"]["rows"] else None
        m, p = ([res.macro(x, g)[0] for g in ("validation", "unseen", "mmlu", "unseen + mmlu", "pool")] if x else [] for x in (a, plain))
        cell = lambda k: "%.1f (%.1f)" % (m[k], p[k]) if p else "%.1f" % m[k]
        out.append("| %s | %d | %s | %s | %s | %s | %.0f %% | %s | %s |" % (
            label, n, rank, " | ".join(map(cell, range(4))), diff(a, old, "unseen + mmlu"), diff(a, alike, "unseen + mmlu"),
            100 * (m[3] - low) / (high - low), cell(4), diff(a, alike, "pool")))
    return "\n".join(out)


def guide_table(res):
    """Rows with several prompts for one answer (lab_guide.py)."""
    variants = (", 4 orders, guide 0", ", 1 orders, guide -0.25", ", 1 orders, guide 0.25", ", 1 orders, guide 0.5", ", 1 orders, guide 1", ", 4 orders, guide 0.5")
    out = ["| row, 8 in front | prompts | validation | unseen | MMLU | pool | unseen and MMLU, against one prompt | pool, against one prompt |", "|" + "---|" * 8]
    diff = lambda a, b, g: difference(res.macro(a, g), res.macro(b, g))
    refined = "REFINE 32 averaged with PICK"
    for label, job, row in (("base", "gbase", "base 8-shot"), ("one LoRA, r", "gwlora-r", "one LoRA"), ("one LoRA, N r", "gwlora-nr", "one LoRA"),
                            ("library: REFINE, averaged with PICK", "gwlib", refined), ("library with general weights: the same", "gwgen", refined)):
        cells = lambda end: [(job, "%s seed %d%s" % (row, s, end)) for s in (1, 2, 3)] if job == "gbase" else [(j, row + FRONT + end) for j in res.seeds(job)]
        plain = res.accuracy(cells(""))
        for end in ("", *variants):
            a = res.accuracy(cells(end))
            m = " | ".join("%.1f" % res.macro(a, g)[0] for g in ("validation", "unseen", "mmlu", "pool"))
            out.append("| %s | %s | %s | %s | %s |" % (label, end[2:].replace("1 orders, ", "").replace(", guide 0", "", end.endswith("guide 0")) or "one", m,
                                                       diff(a, plain, "unseen + mmlu") if end else "", diff(a, plain, "pool") if end else ""))
    return "\n".join(out)


def layers_table(res):
    """Which layer's mean hidden state finds near tasks, and how well it tells a task's own questions."""
    out = ["| layers | NEAREST: unseen | MMLU | pool | KNN: unseen | MMLU | pool | AUROC of scope |", "|" + "---|" * 8]
    rows = res.jobs["abl-layers"]["rows"]
    for name in rows:
        if name.startswith("NEAREST, "):
            k = name[9:]
            m = [res.macro(res.accuracy([("abl-layers", w + k)]), g)[0] for w in ("NEAREST, ", "KNN, ") for g in ("unseen", "mmlu", "pool")]
            out.append("| %s | %s | %.3f |" % (k.split()[0], " | ".join("%.1f" % x for x in m), rows[name]["scope"]))
    return "\n".join(out)


def memory_table(res):
    """Rows with and without a memory of the examples (lab_memory.py); its variant is the best by validation."""
    out = ["| row | memory | validation | unseen | MMLU | pool | unseen and MMLU, against without | pool, against without |", "|" + "---|" * 8]
    diff = lambda a, b, g: difference(res.macro(a, g), res.macro(b, g))
    for label, job, row in (("base, 8 in front", "wbase", "base 8-shot"), ("one LoRA, r", "wlora-r", "one LoRA"), ("one LoRA, r" + FRONT, "wlora-r", "one LoRA" + FRONT),
                            ("one LoRA, N r", "wlora-nr", "one LoRA"), ("one LoRA, N r" + FRONT, "wlora-nr", "one LoRA" + FRONT),
                            ("library: REFINE, averaged with PICK", "wlib", "REFINE 32 averaged with PICK"), ("library: the same" + FRONT, "wlib", "REFINE 32 averaged with PICK" + FRONT)):
        cells = lambda end: [("wbase", "%s seed %d%s" % (row, s, end)) for s in (1, 2, 3)] if job == "wbase" else [(j, row + end) for j in res.seeds(job)]
        first, name = cells("")[0]
        ends = [r[len(name):] for r in res.jobs[first]["rows"] if r.startswith(name + ", memory")]
        if not ends:
            continue
        score = {e: res.macro(res.accuracy(cells(e)), "validation")[0] for e in ends}
        best, plain = max(ends, key=score.get), res.accuracy(cells(""))
        for e in ("", best):
            a = res.accuracy(cells(e))
            m = " | ".join("%.1f" % res.macro(a, g)[0] for g in ("validation", "unseen", "mmlu", "pool"))
            out.append("| %s | %s | %s | %s | %s |" % (label, e[9:] or "-", m, diff(a, plain, "unseen + mmlu") if e else "", diff(a, plain, "pool") if e else ""))
    return "\n".join(out)


def tries_table(res):
    """Validation accuracy of the variants of training with worked examples, one epoch, with 8 in front."""
    names = ("k5", "k8", "k8-half", "k8-slow")
    out = ["| row | up to 5 in view | up to 8 | up to 8, half of the rows alone | up to 8, half the rate |", "|" + "---|" * 5]
    for label, job, row in (("one LoRA, r", "wlora-r", "one LoRA"), ("one LoRA, N r", "wlora-nr", "one LoRA"), ("library: KNN", "wlib", "KNN middle"), ("library: REFINE", "wlib", "REFINE 32"),
                            ("library: REFINE by the loss with examples in front", "wlib", "REFINE in context")):
        cells = ["%.1f" % res.jobs[f"{job}-try-{n}"]["rows"][row + FRONT]["macro"]["validation"] for n in names if f"{job}-try-{n}" in res.jobs]
        out.append("| %s | %s |" % (label, " | ".join(cells)))
    return "\n".join(out)


def rates_table(res):
    out = ["| row | " + " | ".join("rate: validation" for _ in range(3)) + " |", "|---|---|---|---|"]
    for prefix, row, label in (("lora-r", "one LoRA", "one LoRA, r"), ("lora-nr", "one LoRA", "one LoRA, N r"), ("cen", "centroid SOFTMAX", "centroid: SOFTMAX"),
                               ("sep", "AdapterSoup k 1", "AdapterSoup k 1"), ("lib", "REFINE 32", "library: REFINE")):
        jobs = sorted((j for j in res.jobs if j.startswith(prefix + "-try-")), key=lambda j: float(j.split("-try-")[1]))
        got = ["%s: %.1f" % (j.split("-try-")[1], res.macro(res.accuracy([(j, row)]), "validation")[0]) for j in jobs]
        out.append("| %s | %s |" % (label, " | ".join(got)))
    return "\n".join(out)


def sizes_table(res):
    """REFINE averaged with PICK by size of the pool, three seeds, against one LoRA N r."""
    ref = res.accuracy([(j, "one LoRA") for j in res.seeds("lora-nr")])
    out = ["| pool, three seeds | validation | unseen | MMLU | both | both, against N r | unseen, against N r | pool | pool, against N r |", "|" + "---|" * 9]
    for n, job in ((8, "abl-n8"), (16, "abl-n16"), (32, "lib")):
        a = res.accuracy(cells_of(res, job, "REFINE 32 averaged with PICK"))
        m = {g: res.macro(a, g) for g in GROUPS}
        diff = lambda g: difference(m[g], res.macro(ref, g))
        out.append("| N = %d | %s | %s | %s | %.1f | %s |" % (n, " | ".join("%.1f" % m[g][0] for g in GROUPS[:4]), diff("unseen + mmlu"), diff("unseen"), m["pool"][0], diff("pool")))
    return "\n".join(out)


def tuned_table(res):
    """Pairs of rows with gradient steps, 8 examples in front."""
    steps, chains = " + gradient lr 0.0003 steps 8" + FRONT, " + gradient in chains lr 0.0003 steps 8" + FRONT
    own, lora = "REFINE", "one LoRA"
    out = ["| row | against | unseen and MMLU | difference | pool | difference |", "|" + "---|" * 6]
    for label, a, to, b in (
            ("library, steps in chains", ("twlib", own + chains), "in halves", ("twlib", own + steps)),
            ("library with general weights, in chains", ("twgen", own + chains), "in halves", ("twgen", own + steps)),
            ("one LoRA r, in chains", ("twlora-r", lora + chains), "in halves", ("twlora-r", lora + steps)),
            ("library with general weights, steps", ("twgen", own + steps), "library, steps", ("twlib", own + steps)),
            ("library with general weights, steps", ("twgen", own + steps), "one LoRA r, steps", ("twlora-r", lora + steps)),
            ("clear licences: library with general weights, steps", ("twgen-clear", own + steps), "one LoRA r, steps", ("twlora-r-clear", lora + steps)),
            ("clear licences: library with general weights, steps", ("twgen-clear", own + steps), "the anchor of these tasks", ("lora-r-clear", lora + " + gradient lr 0.001 steps 4")),
            ("clear licences: library with general weights, no steps", ("wgen-clear", "REFINE 32 averaged with PICK" + FRONT), "the anchor of these tasks", ("lora-r-clear", lora + " + gradient lr 0.001 steps 4")),
            ("trained without, none in front: library, 8 steps at 3e-4", ("lib", own + " + gradient lr 0.0003 steps 8"), "one LoRA N r, 8 steps at 1e-4", ("anr", lora + " + gradient lr 0.0001 steps 8")),
            ("the same: one LoRA N r, 8 steps at 1e-4", ("anr", lora + " + gradient lr 0.0001 steps 8"), "the anchor, one LoRA r, 4 steps at 1e-3", ("lora-r", lora + " + gradient lr 0.001 steps 4")),
            ("library, 8 steps in chains, 8 in front", ("twlib", own + chains), "one LoRA N r, 8 steps at 1e-4", ("anr", lora + " + gradient lr 0.0001 steps 8")),
            ("centroid pool, no steps", ("wcen", "centroid SOFTMAX" + FRONT), "one LoRA r, no steps", ("wlora-r", lora + FRONT))):
        x, y = (res.accuracy(cells_of(res, *c)) for c in (a, b))
        cell = lambda g: "%.1f | %s" % (res.macro(x, g)[0], difference(res.macro(x, g), res.macro(y, g)))
        out.append("| %s | %s | %s | %s |" % (label, to, cell("unseen + mmlu"), cell("pool")))
    return "\n".join(out)


def training_table(res):
    out = ["| job | trained by | tokens | s | tokens/s | loss, first and last 5 % |", "|---|---|---|---|---|---|"]
    for j in sorted(res.jobs):
        t = res.jobs[j].get("train")
        if t and j[0] != "g" and ("seed1" in j or "witness" in j):
            out.append("| %s | %s | %d | %.0f | %.0f | %.3f, %.3f |" % (j, t.get("by", "PyTorch"), t["tokens"], t["seconds"], t["tokens_per_s"], t["loss_first"], t["loss_last"]))
    return "\n".join(out)


def scope_table(both):
    out = ["| model | view | validation | unseen | MMLU | pool |", "|---|---|---|---|---|---|"]
    for label, res in both:
        for view, name in (("qx", "q_x"), ("mid", "middle")):
            a = res.jobs["base"]["scope"][view]
            mean = lambda g: np.mean([a[n] for n in res.names if res.group[n] == g and n in a])
            out.append("| %s | %s | %s |" % (label, name, " | ".join("%.2f" % mean(g) for g in ("validation", "unseen", "mmlu", "pool"))))
    return "\n".join(out)


def command_table(path):
    """What `crayon blend` itself came to (command.py): mean over tasks, seeds averaged first."""
    if not os.path.exists(path):
        return ""
    rows = json.load(open(path))
    tasks = sorted({k.rsplit(" ", 1)[0] for k in rows})
    runs = {t: [r for k, r in rows.items() if k.rsplit(" ", 1)[0] == t] for t in tasks}
    mean = {n: np.array([np.mean([r[n] for r in runs[t]]) for t in tasks]) for n in ("base", "refined", "refined+", "tuned", "tuned+")
            if all(n in r for r in rows.values())}
    w = np.random.default_rng(2).multinomial(len(tasks), np.full(len(tasks), 1 / len(tasks)), DRAWS) / len(tasks)
    diff = lambda a, b: "%+.1f [%+.1f, %+.1f]" % (100 * (a - b).mean(), *interval(100 * (w @ (a - b))))
    out = ["%d tasks, %d runs.\n" % (len(tasks), len(rows)), "| palette of | accuracy | against the base | against refined | keeps base, blend, tuned blend |", "|---|---|---|---|---|",
           "| (base) | %.1f | | | |" % (100 * mean["base"].mean())]
    for n in list(mean)[1:]:
        kept = [sum(r["kept by " + n].rstrip("+") == x for r in rows.values()) for x in ("base", "refined", "tuned")]
        shown = sum(r["kept by " + n][-1] == "+" for r in rows.values())
        out.append("| level %s%s | %.1f | %s | %s | %d, %d, %d%s |" % (
            n.rstrip("+"), ", worked examples tried" if n[-1] == "+" else "", 100 * mean[n].mean(), diff(mean[n], mean["base"]),
            diff(mean[n], mean["refined"]) if n != "refined" else "", *kept, "; worked examples %d" % shown if n[-1] == "+" else ""))
    return "\n".join(out)


def main(folder, page):
    big, small = Results(folder + "/smollm2"), Results(folder + "/15m")
    docs = os.path.dirname(page)
    ex = lambda ns, job="lib-seed1": [("%d examples, %s" % (n, w), job, "%s, %d examples" % (w, n)) for n in ns for w in ("PICK", "REFINE")]
    many = lambda ns: ex([n for n in ns if n < 8]) + [("8 examples, PICK", "lib-seed1", "PICK"), ("8 examples, REFINE", "lib-seed1", "REFINE 32")] + ex([n for n in ns if n > 8])
    robust = lambda: [("its own 8 examples, %s" % w, "lib-seed1", w + (" 32" if w == "REFINE" else "")) for w in ("PICK", "REFINE")] + [
        ("%s, %s" % (h, w), "lib-seed1", "%s, %s" % (w, h)) for h in ("half of another task", "all of another task") for w in ("PICK", "REFINE")] + [
        ("no examples: MEAN", "lib-seed1", "MEAN")]
    evals = lambda: [("0 (PICK)", "lib-seed1", "PICK"), ("32", "lib-seed1", "REFINE 32"), ("128", "lib-seed1", "REFINE 128")]
    sizes = lambda ns, own, seeds: [("N = %d, %s%s" % (n, w, " (3 seeds)" if n in seeds else ""), ("lib" if own in seeds else "lib-seed1") if n == own else "abl-n%d" % n, r)
                                    for n in ns for w, r in (("KNN", "KNN middle"), ("PICK", "PICK"), ("REFINE", "REFINE 32"))]
    grads = lambda: [(r, j, r) for j in ("lib-seed1", "lora-r-seed1", "lora-nr-seed1") for r in (big.jobs[j]["rows"] if j in big.jobs else []) if "gradient" in r]
    blocks = {
        "smollm2": main_table(big, docs + "/evidence-smollm2.svg", "SmolLM2-135M-Instruct"), "15m": main_table(small, docs + "/evidence-15m.svg", "crayon-15m"),
        "smollm2 unseen": unseen_table(big), "15m unseen": unseen_table(small), "smollm2 worst": worst_table(big), "15m worst": worst_table(small),
        "smollm2 rates": rates_table(big), "15m rates": rates_table(small), "smollm2 training": training_table(big),
        "smollm2 sizes": list_table(big, "pool", sizes((8, 16, 32, 64, 128), 32, (8, 16, 32)) + [("N = 16, tasks with clear licences only, PICK", "lib-clear", "PICK"), ("the same, REFINE", "lib-clear", "REFINE 32")]),
        "smollm2 sizes seeds": sizes_table(big), "smollm2 tuned": tuned_table(big),
        "15m sizes": list_table(small, "pool", sizes((4, 8, 16, 32, 64), 16, ())),
        "smollm2 examples": list_table(big, "examples", many((1, 3)) + ex((5, 50), "abl-layers")), "15m examples": list_table(small, "examples", many((1, 3, 5, 50))),
        "smollm2 robust": list_table(big, "examples", robust()), "15m robust": list_table(small, "examples", robust()),
        "smollm2 evals": list_table(big, "evaluations", evals()), "15m evals": list_table(small, "evaluations", evals()),
        "smollm2 gradient": list_table(big, "row", [(("library: " if j.startswith("lib") else "r: " if "-r-" in j else "N r: ") + r, j, r) for _, j, r in grads()]),
        "smollm2 ranks": list_table(big, "pool", [("%s, %s" % (label, w), job, r) for label, job in (("rank 4", "abl-r4"), ("rank 8", "lib-seed1"), ("rank 16", "abl-r16"), ("rank 32", "abl-r32"),
                                    ("SEPARATE, N = 8, rank 8 (64 at run time)", "abl-separate")) for w, r in (("PICK", "PICK"), ("REFINE", "REFINE 32"))]),
        "smollm2 epochs": list_table(big, "trained for", [("%d epochs: %s" % (e, label), job, row) for label, row, jobs in (
            ("one LoRA, r", "one LoRA", {2: "lora-r-seed1", 4: "abl-lora-r-e4"}), ("one LoRA, N r", "one LoRA", {2: "lora-nr-seed1", 4: "abl-lora-nr-e4"}),
            ("library: REFINE, averaged with PICK", "REFINE 32 averaged with PICK", {2: "lib-seed1", 4: "abl-e4"})) for e, job in jobs.items()]),
        "smollm2 worked epochs": list_table(big, "trained for, 8 in front", [("%d epochs: %s (%s)" % (e, label, "3 seeds" if len(big.seeds(job)) > 2 else "seed 1"), job, row + FRONT) for label, row, jobs in (
            ("one LoRA, r", "one LoRA", {2: "wlora-r", 4: "wlora-r-e4"}), ("one LoRA, N r", "one LoRA", {2: "wlora-nr", 4: "wlora-nr-e4"}),
            ("library: REFINE, averaged with PICK", "REFINE 32 averaged with PICK", {2: "wlib", 4: "wlib-e4", 8: "wlib-e8"}),
            ("library with general weights: the same", "REFINE 32 averaged with PICK", {2: "wgen", 4: "wgen-e4", 8: "wgen-e8"})) for e, job in jobs.items()]),
        "smollm2 guide": guide_table(big), "smollm2 layers": layers_table(big), "smollm2 clear": worked_table(big, CLEAR, "wlora-nr-clear"),
        "smollm2 tasks": list_table(big, "pool", [("%d tasks, %s" % (n, w), "lib-seed1" if n == 272 else "abl-t%d" % n, r) for n in (16, 32, 64, 128, 272)
                                                  for w, r in (("PICK", "PICK"), ("REFINE", "REFINE 32"))]),
        "smollm2 memory": memory_table(big), "smollm2 worked": worked_table(big, WORKED, "wlora-nr"), "smollm2 tries": tries_table(big), "15m tries": tries_table(small),
        "15m worked": list_table(small, "3 seeds, trained with worked examples", [(l + w, j, r + x) for l, j, r in (
            ("one LoRA, r", "wlora-r", "one LoRA"), ("one LoRA, N r", "wlora-nr", "one LoRA"), ("library: REFINE", "wlib", "REFINE 32"),
            ("one LoRA, r, 4 steps", "wlora-r", "one LoRA + gradient lr 0.001 steps 4"), ("library: REFINE, 4 steps", "wlib", "REFINE + gradient lr 0.001 steps 4"),
            ("library: REFINE in context, 4 steps, seed 1", "wlib", "REFINE in context + gradient lr 0.001 steps 4")) for w, x in (("", ""), (FRONT, FRONT))]
            + [("trained without: library: REFINE", "lib", "REFINE 32"), ("trained without: one LoRA, N r", "lora-nr", "one LoRA")]),
        **{f"{m} {name}": f(r) for m, r in (("smollm2", big), ("15m", small)) for name, f in (
            ("kinds", choose.kinds), ("choose", choose.table), ("choose pairs", choose.pairs), ("choose worst", choose.worst))},
        "command": command_table(folder + "/15m-command.json"),
        "scope": scope_table((("SmolLM2", big), ("15M", small))),
        "witness": list_table(big, "one LoRA, r, seed 1", [("trained by crayon", "lora-r-seed1", "one LoRA"), ("trained by PyTorch", "witness-lora-r", "one LoRA")]),
    }
    text = open(page).read()
    for name, block in blocks.items():
        mark = "<!-- %s -->\n" % name
        if mark in text:
            a = text.index(mark) + len(mark)
            b = text.index("<!-- end -->", a)
            text = text[:a] + block + "\n" + text[b:]
        else:
            print("no place for", name)
    with open(page, "w") as f:
        f.write(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
