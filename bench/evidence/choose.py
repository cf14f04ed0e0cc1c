# SPDX-License-Identifier: Apache-2.0
"""What a user's held-out rows can decide, from the raw results; for report.py.

`crayon blend` keeps what is better on held-out lines. Here K of each task's test rows play those lines: they choose
among candidates, the other rows measure. Expected values over 20 draws of the K rows, of each seed. The first
candidate is kept unless another has more of the K rows right (by more than `margin` of them).
"""
import numpy as np

DRAWS = 20
# candidates by short names; the rows are those of the tables
ROWS = {
    "REFINE": ("lib", "REFINE 32"), "REFINE 5-shot": ("lib", "REFINE 32 with 5-shot prompts"), "base 5-shot": ("base", None),
    "N r": ("lora-nr", "one LoRA"), "r": ("lora-r", "one LoRA"), "8 gentle steps": ("lib", "REFINE + gradient lr 0.0003 steps 8"),
    "4 steps": ("lib", "REFINE + gradient lr 0.001 steps 4"), "r + 4 steps": ("lora-r", "one LoRA + gradient lr 0.001 steps 4"),
    "worked": ("wgen", "REFINE 32 averaged with PICK, 8 in front"), "worked N r": ("wlora-nr", "one LoRA, 8 in front"),
    "worked r": ("wlora-r", "one LoRA, 8 in front"), "worked r + 8 steps": ("wlora-r", "one LoRA + gradient lr 0.0003 steps 8, 8 in front"),
    "worked library": ("wlib", "REFINE 32 averaged with PICK, 8 in front"), "the same alone": ("wlib", "REFINE 32 averaged with PICK"),
    "worked + 8 steps": ("wlib", "REFINE + gradient lr 0.0003 steps 8, 8 in front"),
}
SMALL = {**ROWS, "4 steps": ("lib", "blend + gradient lr 0.001 steps 4")}


class Chooser:
    def __init__(self, res):
        seeds = [s for s in (1, 2, 3) if f"lib-seed{s}" in res.jobs]
        self.res, self.cells = res, {}
        self.starts = np.r_[0, np.cumsum([c.shape[1] for c in res.counts])]
        for name, (job, row) in (ROWS if res.has("lib-seed1", ROWS["4 steps"][1]) else SMALL).items():
            got = [(f"{job}-seed{s}", row) if job != "base" else ("base", f"base 5-shot seed {s}") for s in seeds]
            if got and all(res.has(*c) for c in got):
                self.cells[name] = [res.bits(*c).astype(float) for c in got]

    def mean(self, name):
        return np.mean(self.cells[name], 0)

    def choose(self, names, k, margin=0.0):
        """Expected bit of every row: chosen by k other rows of its task."""
        out = []
        for s in range(len(self.cells[names[0]])):
            b = np.stack([self.cells[n][s] for n in names])
            total, count = np.zeros(b.shape[1]), np.zeros(b.shape[1])
            rng = np.random.default_rng(s + 1)
            for lo, hi in zip(self.starts[:-1], self.starts[1:]):
                held = min(k, (hi - lo) // 2)
                for _ in range(DRAWS):
                    order = rng.permutation(hi - lo) + lo
                    m = b[:, order[:held]].mean(1)
                    at = int(m.argmax())
                    at = at if m[at] > m[0] + margin else 0
                    rest = order[held:]
                    total[rest] += b[at, rest]
                    count[rest] += 1
            out.append(np.where(count > 0, total / np.maximum(count, 1), b[0]))
        return np.mean(out, 0)


def difference(res, a, b, g):
    x, y = res.macro(res.of_bits(a), g), res.macro(res.of_bits(b), g)
    return "%+.1f [%+.1f, %+.1f]" % (x[0] - y[0], *np.percentile(x[1] - y[1], (2.5, 97.5)))


def table(res):
    """Accept or keep by K held-out rows."""
    c = Chooser(res)
    if not {"N r", "base 5-shot"} <= set(c.cells):
        return ""
    plans = [("no choice: REFINE", ["REFINE"], 0, 0), ("**without gradient steps**", None, 0, 0)]
    plans += [("REFINE, alone or with 5 examples in the prompt", ["REFINE", "REFINE 5-shot"], k, 0) for k in (4, 8, 16)]
    plans += [("the same, or the base model with 5 examples", ["REFINE", "REFINE 5-shot", "base 5-shot"], k, 0) for k in (4, 8, 16)]
    plans += [("control: one LoRA N r, or the base model with 5 examples", ["N r", "base 5-shot"], k, 0) for k in (8, 16)]
    plans += [("control: one LoRA r, or the base model with 5 examples", ["r", "base 5-shot"], k, 0) for k in (8, 16)]
    plans += [("the pool trained with worked examples and 8 in front, or REFINE of the pool trained without", ["worked", "REFINE"], k, 0) for k in (8, 16)]
    plans += [("control: one LoRA N r trained with worked examples and 8 in front, or the one without", ["worked N r", "N r"], k, 0) for k in (8, 16)]
    plans += [("**with gradient steps**", None, 0, 0)]
    plans += [("REFINE, or 8 gentle steps from it", ["REFINE", "8 gentle steps"], k, 0) for k in (4, 8, 16)]
    plans += [("REFINE, or 4 steps at 1e-3 from it (`--level tuned`)", ["REFINE", "4 steps"], k, 0) for k in (4, 8, 16)]
    plans += [("the same, or REFINE with 5 examples in the prompt", ["REFINE", "4 steps", "REFINE 5-shot"], k, 0) for k in (8, 16)]
    plans += [("the same as `--level tuned`, or the pool trained with worked examples and 8 in front", ["REFINE", "4 steps", "worked"], k, 0) for k in (8, 16)]
    plans += [("control: one LoRA r, or the anchor", ["r", "r + 4 steps"], k, 0) for k in (8, 16)]
    plans += [("one pool trained with worked examples: 8 gentle steps with 8 in front, or its blend alone", ["worked + 8 steps", "the same alone"], k, 0) for k in (8, 16)]
    plans += [("those steps, or REFINE of the pool trained without", ["worked + 8 steps", "REFINE"], k, 0) for k in (8, 16)]
    plans += [("control: the same steps from one LoRA r trained alike, or one LoRA r", ["worked r + 8 steps", "r"], k, 0) for k in (8, 16)]
    out = ["| kept, or taken instead | K | validation | unseen | MMLU | both | both, against N r | both, against base 5-shot | pool | pool, against N r |", "|" + "---|" * 10]
    for label, names, k, margin in plans:
        if names is None:
            out.append("| %s |%s" % (label, " |" * 9))
            continue
        if not all(n in c.cells for n in names):
            continue
        b = c.choose(names, k, margin) if k else c.mean(names[0])
        m = [res.macro(res.of_bits(b), g)[0] for g in ("validation", "unseen", "mmlu", "unseen + mmlu", "pool")]
        out.append("| %s | %s | %.1f | %.1f | %.1f | %.1f | %s | %s | %.1f | %s |" % (
            label, k or "-", *m[:4], difference(res, b, c.mean("N r"), "unseen + mmlu"), difference(res, b, c.mean("base 5-shot"), "unseen + mmlu"),
            m[4], difference(res, b, c.mean("N r"), "pool")))
    return "\n".join(out)


def pairs(res):
    """The differences that the text quotes: ours against a control with the same choice."""
    c = Chooser(res)
    out = ["| ours | control | K | unseen and MMLU | unseen | pool |", "|" + "---|" * 6]
    for ours, control in ((["REFINE", "REFINE 5-shot", "base 5-shot"], ["N r", "base 5-shot"]), (["REFINE", "REFINE 5-shot", "base 5-shot"], ["r", "base 5-shot"]),
                          (["REFINE", "4 steps"], ["r", "r + 4 steps"]), (["REFINE", "4 steps"], ["r + 4 steps"]),
                          (["worked + 8 steps", "REFINE"], ["r + 4 steps"]), (["worked + 8 steps", "REFINE"], ["worked r + 8 steps", "r"])):
        for k in (8, 16):
            if all(n in c.cells for n in ours + control):
                a, b = c.choose(ours, k), c.choose(control, k) if len(control) > 1 else c.mean(control[0])
                out.append("| %s | %s | %d | %s |" % (" / ".join(ours), " / ".join(control), k, " | ".join(difference(res, a, b, g) for g in ("unseen + mmlu", "unseen", "pool"))))
    return "\n".join(out)


def worst(res):
    """Tasks that lose against one LoRA N r under rules of acceptance."""
    c = Chooser(res)
    if "N r" not in c.cells:
        return ""
    ref = res.of_bits(c.mean("N r"))
    plans = [("REFINE for all", ["REFINE"], 0, 0)]
    plans += [("N r is kept unless REFINE has more of K right", ["N r", "REFINE"], k, 0) for k in (4, 8, 16, 32)]
    plans += [("N r is kept unless REFINE has more right by more than a tenth of K", ["N r", "REFINE"], k, 0.1) for k in (8, 16, 32)]
    plans += [("REFINE is kept unless N r has more of K right", ["REFINE", "N r"], k, 0) for k in (8, 16)]
    plans += [("REFINE is kept unless 4 steps have more of K right", ["REFINE", "4 steps"], k, 0) for k in (8, 16)]
    out = ["| rule | K | tasks that lose more than 3 points beyond noise: validation | unseen | MMLU | pool | gain more than 3, beyond noise | the worst | accuracy, unseen and MMLU | pool |",
           "|" + "---|" * 10]
    group = np.array([res.group[n] for n in res.names])
    for label, names, k, margin in plans:
        if not all(n in c.cells for n in names):
            continue
        x = res.of_bits(c.choose(names, k, margin) if k else c.mean(names[0]))
        d, b = 100 * (x[0] - ref[0]), 100 * (x[1] - ref[1])
        lo, hi = np.percentile(b, 2.5, axis=1), np.percentile(b, 97.5, axis=1)
        bad, w = (d < -3) & (hi < 0), int(d.argmin())
        out.append("| %s | %s | %s | %d | %s %+.1f [%+.1f, %+.1f] | %.1f | %.1f |" % (
            label, k or "-", " | ".join("%d of %d" % ((bad & (group == g)).sum(), (group == g).sum()) for g in ("validation", "unseen", "mmlu", "pool")),
            ((d > 3) & (lo > 0)).sum(), res.names[w], d[w], lo[w], hi[w], res.macro(x, "unseen + mmlu")[0], res.macro(x, "pool")[0]))
    return "\n".join(out)


def kinds(res):
    """Choices and short answers apart: where gradient steps gain."""
    rows = [("base, 5-shot", "base 5-shot"), ("one LoRA, r", "r"), ("one LoRA, N r", "N r"), ("library: REFINE", "REFINE"), ("library: REFINE, 5-shot prompts", "REFINE 5-shot"),
            ("trained with worked examples, 8 in front: pool", "worked"), ("the same: one LoRA, N r", "worked N r"), ("library: REFINE + 8 gentle steps", "8 gentle steps"), ("library: blend + 4 steps at 1e-3", "4 steps"), ("one LoRA, r + 4 steps (the anchor)", "r + 4 steps")]
    c, kind = Chooser(res), np.array([res.kind[n] for n in res.names])
    group = np.array([res.group[n] for n in res.names])
    cols = [(g, k) for g in ("unseen", "mmlu", "pool") for k in ("choices", "short answers") if ((group == g) & (kind == k)).any()]
    out = ["| row | " + " | ".join("%s: %s (%d tasks)" % ("MMLU" if g == "mmlu" else g, k, ((group == g) & (kind == k)).sum()) for g, k in cols) + " |", "|" + "---|" * (len(cols) + 1)]
    for label, name in rows:
        if name in c.cells:
            a = 100 * res.of_bits(c.mean(name))[0]
            out.append("| %s | %s |" % (label, " | ".join("%.1f" % a[(group == g) & (kind == k)].mean() for g, k in cols)))
    return "\n".join(out)
