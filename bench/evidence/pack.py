#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns the task files into one array file of token ids for lab.py; development only.

usage: pack.py TASK_DIR split.json MODEL.gguf OUTPUT.npz [--rows DIR] [--small]

Prompts, answers and options are those of docs/method.md: `Context: C\\nQuestion: Q\\nAnswer:`, an option
is " " + text, an answer that is trained or matched ends with a line feed. Per task, by a fixed seed:
rows for training (at most 800, at most 256 tokens), up to 50 rows that a user might give (from the
train or dev split, never trained on), and test rows. Needs tokenizers, gguf, numpy.
"""
import argparse
import hashlib
import json
import lzma
import os
import random

import gguf
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

TRAIN, GIVEN, P3_TESTED = 800, 50, 40  # of the P3 prompts that train, only the first 40 are tested
TEST = {"pool": 40, "validation": 100, "unseen": 100, "mmlu": 60}
MAX_TRAIN_TOKENS, MAX_PROMPT = 256, 900
GROUPS = ["pool", "validation", "unseen", "mmlu"]


def read(path):
    """Rows with an answer by task. The files p3 and mmlu hold several tasks, the others are one each."""
    out, stem = {}, os.path.basename(path).split(".")[0]
    if os.path.exists(path):
        with lzma.open(path, "rt", encoding="utf-8") as f:
            for line in f:
                r = json.loads(line)
                if r.get("answer") not in (None, ""):
                    out.setdefault(r["task"] if stem in ("p3", "mmlu") else stem, []).append(r)
    return out


def tokenizer_of(path):
    """The byte-level BPE tokenizer that a GGUF file holds."""
    f = gguf.GGUFReader(path).fields
    get = lambda k: f["tokenizer.ggml." + k].contents()
    if get("model") != "gpt2" or get("pre") not in ("gpt-2", "smollm"):
        raise SystemExit("pack.py: %s: tokenizer %s/%s is not known here" % (path, get("model"), get("pre")))
    vocab = {t: i for i, t in enumerate(get("tokens"))}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(m.split(" ")) for m in get("merges")]))
    steps = [pre_tokenizers.Digits(individual_digits=True)] if get("pre") == "smollm" else []
    tok.pre_tokenizer = pre_tokenizers.Sequence(steps + [pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tok


class Packer:
    def __init__(self, tok):
        self.tok = tok
        self.newline = tok.encode("\n", add_special_tokens=False).ids
        assert len(self.newline) == 1
        self.ids, self.rows, self.options = [], [], []

    def encode(self, text):
        return self.tok.encode(text, add_special_tokens=False)

    def row(self, r, task, use, max_tokens=None):
        """use: 0 train, 1 given, 2 test. False when the row is too long to train on."""
        parts, spans, text = [], [], ""
        for label, value in (("Context: ", r.get("context")), ("Question: ", r["question"])):
            if value:
                text += label
                spans.append((len(text), len(text) + len(value)))
                text += value + "\n"
        text += "Answer:"
        e = self.encode(text)
        content = [any(a < hi and b > lo for lo, hi in spans) for a, b in e.offsets]
        ids = list(e.ids)
        if len(ids) > MAX_PROMPT:
            ids, content = ids[-MAX_PROMPT:], content[-MAX_PROMPT:]
        if r.get("choices"):
            texts, right = r["choices"], int(r["answer"])
        else:
            texts, right = [str(r["answer"])], 0
        if use == 0:
            texts, right_at = [texts[right]], 0
        else:
            right_at = right
        options = [self.encode(" " + t).ids for t in texts]
        if use == 0 and len(ids) + len(options[0]) + 1 > max_tokens:
            return False
        mc = bool(r.get("choices"))
        start = len(self.ids)
        self.ids += ids
        first = len(self.options)
        for t, o in zip(texts, options):
            self.options.append((len(self.ids), len(o), max(1, len(t.encode()))))
            self.ids += o
        # content: runs of marked tokens, at most two
        runs, on = [], None
        for i, c in enumerate(content + [False]):
            if c and on is None:
                on = i
            elif not c and on is not None:
                runs.append((on, i))
                on = None
        runs = (runs[:1] + [(runs[1][0], runs[-1][1])] if len(runs) > 2 else runs) or [(0, len(ids))]
        runs += [(0, 0)] * (2 - len(runs))
        self.rows.append((task, use, start, len(ids), *runs[0], *runs[1], first, len(texts), right_at, mc))
        return True


def plain(r, task):
    """A training row as crayon reads it; options are not part of a prompt, so the answer's text is enough."""
    answer = r["choices"][int(r["answer"])] if r.get("choices") else str(r["answer"])
    out = {"task": task, "question": r["question"], "answer": answer}
    if r.get("context"):
        out["context"] = r["context"]
    return json.dumps(out, ensure_ascii=False) + "\n"


def drawn(tasks, split):
    """Of every task (group, file, name, rows to learn from, how many of them a user may give, test rows), in the order of the pack."""
    for g in GROUPS:
        for stem in sorted({"mmlu": ["mmlu"]}.get(g, split[g])):
            path = f"{tasks}/{stem}."
            train = read(path + "train.jsonl.xz") or read(path + "train_small.jsonl.xz") or read(path + "dev.jsonl.xz")
            test = read(path + "test.jsonl.xz")
            order = sorted(set(test) & set(train))
            random.Random("evidence " + stem).shuffle(order)
            for task in order:
                rng = random.Random("evidence " + task)
                have, tests = train[task], test[task]
                rng.shuffle(have)
                rng.shuffle(tests)
                if len(tests) >= 10:  # some P3 prompts have fewer
                    yield g, stem, task, have, min(GIVEN, len(have) // 3) if g != "mmlu" else len(have), tests


def main():
    p = argparse.ArgumentParser()
    for n in ("tasks", "split", "model", "output"):
        p.add_argument(n)
    p.add_argument("--rows", help="folder for the training rows as clear.train.jsonl.xz and other.train.jsonl.xz")
    p.add_argument("--small", action="store_true", help="a tenth of everything, for trying")
    a = p.parse_args()
    split = json.load(open(a.split))
    packer = Packer(tokenizer_of(a.model))
    names, group, clear = [], [], []
    tenth = 10 if a.small else 1
    lines = {True: [], False: []}
    for g, stem, task, have, given, tests in drawn(a.tasks, split):
        t = len(names)
        n = 0
        if g == "pool":
            kept = []
            for r in have[given:]:
                if n < max(8, TRAIN // tenth) and packer.row(r, t, 0, MAX_TRAIN_TOKENS):
                    kept.append(r)
                    n += 1
            if n < 8:
                packer.rows = [x for x in packer.rows if x[0] != t]
                continue
            lines[stem in split["clear_licence"]] += [plain(r, task) for r in kept]
        names.append(task)
        group.append(GROUPS.index(g))
        clear.append(stem in split["clear_licence"])
        if stem == "p3" and sum(x.startswith("p3") for x in names) > P3_TESTED:
            continue
        for r in have[:given]:
            packer.row(r, t, 1)
        for r in tests[:max(8, TEST[g] // tenth)]:
            packer.row(r, t, 2)
    for clear_rows, text in lines.items() if a.rows else ():
        with lzma.open(f"{a.rows}/{'clear' if clear_rows else 'other'}.train.jsonl.xz", "wt", encoding="utf-8") as f:
            f.writelines(text)
    rows = np.array(packer.rows, dtype=np.int32)
    np.savez_compressed(
        a.output, ids=np.array(packer.ids, dtype=np.uint16), rows=rows,
        options=np.array(packer.options, dtype=np.int32), names=np.array(names), group=np.array(group),
        clear=np.array(clear), groups=np.array(GROUPS), newline=packer.newline[0])
    for g, name in enumerate(GROUPS):
        of = np.isin(rows[:, 0], [i for i, x in enumerate(group) if x == g])
        print(name, sum(x == g for x in group), "tasks; train, given, test rows:",
              [int((of & (rows[:, 1] == u)).sum()) for u in range(3)],
              "prompt tokens", [int(rows[of & (rows[:, 1] == u), 3].sum()) for u in range(3)])
    print(len(packer.ids), "ids", hashlib.sha256(open(a.output, "rb").read()).hexdigest())


if __name__ == "__main__":
    main()
