#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a router may see of every multiple-choice test row, from lab.py's option scores.

usage: route_features.py MODEL.gguf PACK.npz SCORES.npz ROW DEVICE_RESULTS_DIR SERVER_RESULTS_DIR JOB ROW OUTPUT.npz
       route_features.py MODEL.gguf PACK.npz SCORES.npz ROW DEVICE_RESULTS_DIR SERVER.json WAY OUTPUT.npz

Device: row ROW of SCORES; server: another model's row, or the sample of route_server.py in one of its ways. Features: p1, p1 - p2, entropy of the options (softmax of
8 * log-prob / bytes), both scopes (cosine to the user's examples), log tokens, log options; and the unit q_x
embedding of the question. Needs torch, gguf.
"""
import json
import sys

import numpy as np
import torch

import lab_model
from lab_data import TEST, Data
from report import Results


def server_bits(place, *row):
    """By task: (group, {number of the test row: right or not})."""
    if place.endswith(".json"):
        tasks = json.load(open(place))["tasks"]
        return {t: (x["group"], dict(zip(x["rows"], (c == "1" for c in x[row[0]])))) for t, x in tasks.items() if row[0] in x}
    res, out, at = Results(place), {}, 0
    right = res.bits(*row)
    for name in res.names:
        out[name] = res.group[name], dict(enumerate(right[at:at + res.rows[name]]))
        at += res.rows[name]
    return out


def main(model, pack, scores, row, device_dir, *rest):
    *server, output = rest
    data = Data(pack)
    flat = np.load(scores)[row].astype(np.float64)
    tasks = [t for t in range(len(data.names)) if len(data.of[t, TEST])]
    base = json.load(open(device_dir + "/base.json"))
    own = {v: base["scope"][v + " own"] for v in ("qx", "mid")}
    server = server_bits(*server)
    options = lambda i: int(data.rows[i][9]) if data.rows[i][11] else 1
    p3 = lambda t: data.names[t].startswith("p3")
    scored = {t for t in tasks if not p3(t)}  # older runs scored the P3 prompts too
    if sum(options(i) for t in scored for i in data.of[t, TEST]) != len(flat):
        scored = set(tasks)
    placed = {t for t in tasks if data.names[t] in base["tasks"]} if "tasks" in base else set(tasks)
    out = {k: [] for k in ("task", "group", "x", "device", "server", "row")}
    at = scope_at = 0
    for t in tasks:
        name = data.names[t]
        for k, i in enumerate(data.of[t, TEST]):
            r, n = data.rows[i], options(i)
            s = flat[at:at + n]
            at += n * (t in scored)
            scope = [own[v][scope_at] for v in ("qx", "mid")] if t in placed else None
            scope_at += t in placed
            if t not in scored or scope is None or n < 2 or k not in server.get(name, (0, {}))[1]:
                continue
            per = s / data.options[r[8]:r[8] + n, 2]
            p = np.exp(8 * (per - per.max()))
            p = np.sort(p / p.sum())[::-1]
            out["task"].append(name)
            out["group"].append(server[name][0])
            out["x"].append([p[0], p[0] - p[1], -(p * np.log(p + 1e-12)).sum(), *scope, np.log(r[3]), np.log(n)])
            out["device"].append(per.argmax() == r[10])
            out["server"].append(server[name][1][k])
            out["row"].append(i)
    assert at == len(flat) and scope_at == len(own["qx"]), (at, len(flat), scope_at)
    b = lab_model.Base(model, "cpu", torch.float32)
    ids = [np.array(data.prompt(i))[data.content(i)] for i in out.pop("row")]
    q = b.qx([torch.as_tensor(x) for x in ids]).numpy()
    q -= q.mean(0)
    np.savez_compressed(output, emb=(q / np.linalg.norm(q, axis=1, keepdims=True)).astype(np.float16),
                        **{k: np.array(v, dtype=np.float32 if k == "x" else None) for k, v in out.items()})
    print(len(out["task"]), "rows; device", np.mean(out["device"]), "server", np.mean(out["server"]))


main(*sys.argv[1:])
