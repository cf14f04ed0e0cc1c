#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The training rows of the shipped 15M pool; development only.

usage: ship.py TASK_DIR split.json DATA_DIR MODEL.gguf OUTPUT.train.jsonl.xz

All tasks with a clear licence that train pools in split.json, and those of DATA_DIR/train.jsonl.xz; not
the tasks that DATA_DIR/eval.jsonl.xz keeps unseen, nor any row that it holds. At most 800 rows a task, at
most 256 tokens a row. Needs tokenizers, gguf.
"""
import json
import lzma
import os
import random
import sys

from pack import tokenizer_of


def read(path):
    with lzma.open(path, "rt", encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def main(tasks, split, data, model, output):
    tok = tokenizer_of(model)
    held = read(data + "/eval.jsonl.xz")
    unseen = {r["task"] for r in held if r["group"] == "unseen"}
    rows = {(r["task"], r["question"], r.get("context")) for r in held}
    names = set(json.load(open(split))["clear_licence"]) | {r["task"] for r in read(data + "/train.jsonl.xz")}
    total = 0
    with lzma.open(output, "wt", encoding="utf-8") as f:
        for task in sorted(names - unseen):
            path = next(p for p in (f"{tasks}/{task}.{s}.jsonl.xz" for s in ("train", "train_small")) if os.path.exists(p))
            have, n = read(path), 0
            random.Random("ship " + task).shuffle(have)
            for r in have:
                if n == 800 or r.get("answer") in (None, "") or (task, r["question"], r.get("context")) in rows:
                    continue
                answer = r["choices"][int(r["answer"])] if r.get("choices") else str(r["answer"])
                text = " ".join((r.get("context") or "", r["question"], answer))
                if len(tok.encode(text).ids) > 240:
                    continue
                out = {"task": task, "question": r["question"], "answer": answer}
                if r.get("context"):
                    out["context"] = r["context"]
                f.write(json.dumps(out, ensure_ascii=False) + "\n")
                n += 1
            total += n
    print(len(names - unseen), "tasks,", total, "rows")


main(*sys.argv[1:])
