#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Which candidate for the shipped pool of SmolLM2 (plan.py ship) is best on the validation tasks?

usage: ship_choose.py RESULTS_DIR [MOST_MEGABYTES]

The rule, fixed before the first run: of the variants whose file is not too large, the one with the highest mean over seeds of REFINE
averaged with PICK with 8 examples in front, over all validation tasks; of it the seed with the highest. Prints a table, and the job last.
"""
import glob
import json
import os
import re
import sys

ROWS = ("KNN middle, 8 in front", "REFINE 32 averaged with PICK", "REFINE 32 averaged with PICK, 8 in front")


def main(folder, most="13"):
    per = {}
    for path in sorted(glob.glob(folder + "/ship-*-seed*.json")):
        name, seed = re.fullmatch(r"(ship-.*)-seed(\d+)\.json", os.path.basename(path)).groups()
        r = json.load(open(path))
        n, rank = r["job"]["n"], r["job"]["rank"]
        size = 30 * rank * (3 * 576 + 1536 + 576 + 2 * 576 + n * (576 + 2 * 192 + 576 + 2 * 1536 + 576)) * 34 / 32 / 1e6
        per.setdefault(name, []).append((seed, size, [r["rows"][row]["macro"]["validation"] for row in ROWS]))
    print("| variant | seeds | MB | " + " | ".join(ROWS) + " |\n|" + "---|" * (3 + len(ROWS)))
    best = None
    for name, runs in per.items():
        mean = [sum(v[k] for _, _, v in runs) / len(runs) for k in range(len(ROWS))]
        print("| %s | %d | %.1f | %s |" % (name, len(runs), runs[0][1], " | ".join("%.1f (%s)" % (m, ", ".join("%.1f" % v[k] for _, _, v in runs)) for k, m in enumerate(mean))))
        if runs[0][1] <= float(most) and (best is None or mean[-1] > best[0]):
            best = mean[-1], name + "-seed" + max(runs, key=lambda x: x[2][-1])[0]
    print(best[1])


main(*sys.argv[1:])
