#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A tiny folder of task files out of the repository's own data, to try `make evidence TASKS=DIR`.

usage: tiny.py DIR
"""
import json
import lzma
import os
import sys

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../data")
TASKS = ("clinc150", "dbpedia14", "commonsenseqa", "openbookqa", "piqa", "arc_easy", "banking77", "csqa2", "sni_task1146_country_capital")


def main(out):
    os.makedirs(out, exist_ok=True)
    for source, split, most in (("train", "train", 60), ("eval", "test", 12)):
        rows = {}
        with lzma.open(f"{DATA}/{source}.jsonl.xz", "rt", encoding="utf-8") as f:
            for line in f:
                rows.setdefault(json.loads(line)["task"], []).append(line)
        for t in TASKS:
            with lzma.open(f"{out}/{t}.{split}.jsonl.xz", "wt", encoding="utf-8") as f:
                f.writelines(rows[t][:most])


main(*sys.argv[1:])
