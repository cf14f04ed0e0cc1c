#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Puts the results of lab.py into RESULTS_DIR/MODEL, and tasks.json beside them (task, group, test rows, kind of answer).

usage: collect.py LAB_OUT PACK.npz RESULTS_DIR/MODEL
"""
import glob
import json
import os
import sys

import numpy as np


def main(source, pack, target):
    os.makedirs(target, exist_ok=True)
    for path in glob.glob(source + "/*.json"):
        r = json.load(open(path))
        for key in ("test_rows", "test_task", "group"):
            r.pop(key, None)
        if "train" in r:
            r["train"].pop("pool", None)
        with open(os.path.join(target, os.path.basename(path)), "w") as f:
            json.dump(r, f, separators=(",", ":"))
            f.write("\n")
    d = np.load(pack)
    test = d["rows"][d["rows"][:, 1] == 2]
    n = np.bincount(test[:, 0], minlength=len(d["names"]))
    choices = np.bincount(test[:, 0], weights=test[:, 11] != 0, minlength=len(n))
    tasks = [[str(d["names"][t]), str(d["groups"][d["group"][t]]), int(n[t]), "choices" if 2 * choices[t] > n[t] else "short answers"] for t in range(len(n)) if n[t]]
    with open(target + "/tasks.json", "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(t) for t in tasks) + "\n]\n")


main(*sys.argv[1:])
