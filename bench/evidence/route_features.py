#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a router may see of every multiple-choice test row, from lab.py's option scores.

usage: route_features.py MODEL.gguf PACK.npz SCORES.npz ROW DEVICE_RESULTS_DIR JOB SERVER_RESULTS_DIR JOB ROW OUTPUT.npz

Device: row ROW of JOB; server: another model's row. Features: p1, p1 - p2, entropy of the options (softmax of
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


def main(model, pack, scores, row, device_dir, device_job, server_dir, server_job, server_row, output):
    data = Data(pack)
    flat = np.load(scores)[row].astype(np.float64)
    tasks = [t for t in range(len(data.names)) if len(data.of[t, TEST])]
    dev, srv = Results(device_dir), Results(server_dir)
    base = dev.jobs["base"]
    own = {v: base["scope"][v + " own"] for v in ("qx", "mid")}
    right = srv.bits(server_job, server_row)
    start = dict(zip(srv.names, np.cumsum([0] + [srv.rows[n] for n in srv.names])))
    out = {k: [] for k in ("task", "group", "x", "device", "server", "row")}
    at = scope_at = 0
    names = set(base["tasks"])
    for t in tasks:
        name = data.names[t]
        for k, i in enumerate(data.of[t, TEST]):
            r = data.rows[i]
            n = int(r[9]) if r[11] else 1
            s = flat[at:at + n]
            at += n
            if name not in names:
                continue
            scope = [own[v][scope_at] for v in ("qx", "mid")]
            scope_at += 1
            if not r[11] or name not in start or k >= srv.rows[name] or n < 2:
                continue
            per = s / data.options[r[8]:r[8] + n, 2]
            p = np.exp(8 * (per - per.max()))
            p = np.sort(p / p.sum())[::-1]
            out["task"].append(name)
            out["group"].append(srv.group[name])
            out["x"].append([p[0], p[0] - p[1], -(p * np.log(p + 1e-12)).sum(), *scope, np.log(r[3]), np.log(n)])
            out["device"].append(per.argmax() == r[10])
            out["server"].append(right[start[name] + k])
            out["row"].append(i)
    assert at == len(flat), (at, len(flat))
    b = lab_model.Base(model, "cpu", torch.float32)
    ids = [np.array(data.prompt(i))[data.content(i)] for i in out.pop("row")]
    q = b.qx([torch.as_tensor(x) for x in ids]).numpy()
    q -= q.mean(0)
    np.savez_compressed(output, emb=(q / np.linalg.norm(q, axis=1, keepdims=True)).astype(np.float16),
                        **{k: np.array(v, dtype=np.float32 if k == "x" else None) for k, v in out.items()})
    print(len(out["task"]), "rows; device", np.mean(out["device"]), "server", np.mean(out["server"]))


main(*sys.argv[1:])
