#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The study's laboratory: trains pools and LoRAs and scores every row of docs/evidence.md, in PyTorch.

usage: lab.py --model MODEL.gguf --pack PACK.npz --plan PLAN.json --out FOLDER [--deadline SECONDS]
              [--device cuda] [--only GROUP] [--small]

PLAN lists jobs by importance; each is one training with all the rows (ways to answer) that use it. A
job's result is OUT/NAME.json, written when it ends: a stopped run goes on where it was, and several
processes (one a GPU) may share a folder. No job starts that would not end before the deadline. Rows
never choose anything by unseen tasks: variants are all recorded, report.py picks by validation tasks.
Pools are trained by `crayon pool train` (--crayon) or here by PyTorch, from the same rows. Development
only; needs torch, numpy, gguf.
"""
import argparse
import json
import lzma
import os
import subprocess
import sys
import time
import traceback

import gguf
import numpy as np
import torch

import lab_solve as S
from lab_data import GIVEN, TEST, TRAIN, Batches, Chains, Data, RowSet, embed
from lab_guide import Prompts
from lab_memory import Memory
from lab_model import LINEARS, TENSOR, Adapters, Base, forward, layer

START = time.time()


def log(*x):
    print("%7.1f" % (time.time() - START), *x, flush=True)


class Lab:
    """What all jobs share: data, base model, embeddings, the sets of rows."""

    def __init__(self, args):
        self.args, self.dev, self.line = args, args.device, 256 if args.small else 1024
        dtype = torch.bfloat16 if self.dev.startswith("cuda") else torch.float32
        self.base = Base(args.model, self.dev, dtype)
        self.data = d = Data(args.pack)
        self.fn = torch.compile(layer, dynamic=False) if self.dev.startswith("cuda") and not args.no_compile else layer
        self.tasks = [t for t in range(len(d.names)) if len(d.of[t, TEST]) and not d.names[t].startswith("p3")  # evaluated
                      and args.only in ("", d.groups[d.group[t]])]
        self.number = {t: k for k, t in enumerate(self.tasks)}
        self.pool_tasks = [t for t in range(len(d.names)) if len(d.of[t, TRAIN])]
        self.test = RowSet(d, np.concatenate([d.of[t, TEST] for t in self.tasks]), self.base)
        self.test_task = torch.as_tensor([self.number[t] for t in self.test.task], device=self.dev)
        log("test rows", len(self.test), "tokens", self.test.tokens)
        self.sets, self.given_cache = {}, {}
        self.views()

    def views(self):
        """Raw embeddings of test, given and (for pools trained here) some training rows."""
        d = self.data
        cap = 0 if self.args.crayon else 32 if self.args.small else 128
        train = np.concatenate([d.of[t, TRAIN][:cap] for t in self.pool_tasks])
        given = np.concatenate([d.of[t, GIVEN] for t in self.tasks])
        idx = np.concatenate((train, given, self.test.idx))
        self.raw = dict(zip(("qx", "mid"), embed(self.base, d, idx)))
        self.at = {int(i): k for k, i in enumerate(idx)}
        n = len(train) or len(given)
        self.use_stats({v: (x[:n].mean(0), x[:n].std(0) if v == "mid" else None) for v, x in self.raw.items()})
        if len(train):
            who = torch.as_tensor([self.pool_tasks.index(t) for t in d.task[train]], device=self.dev)
            self.proto = {v: S.unit(S.mean_by(self.unit[v][:n], who, len(self.pool_tasks))) for v in self.raw}
        log("embedded", len(idx), "rows")

    def use_stats(self, stats):
        """Unit embeddings by the means (and deviations of the middle view) of a pool's index."""
        self.unit = {v: S.unit((x - stats[v][0]) / (1 if stats[v][1] is None else stats[v][1].clamp(min=1e-6)))
                     for v, x in self.raw.items() if v in stats}
        self.test_unit = {v: x[-len(self.test):] for v, x in self.unit.items()}

    def given_rows(self, seed, n=8, tasks=None):
        """(RowSet of the users' examples, task number per row)."""
        key = (seed, n, None if tasks is None else tuple(tasks))
        if key not in self.given_cache:
            idx = [self.data.given(t, seed, n) for t in (tasks or self.tasks)]
            who = torch.as_tensor(np.repeat([self.number[t] for t in (tasks or self.tasks)], [len(i) for i in idx]), device=self.dev)
            self.given_cache[key] = RowSet(self.data, np.concatenate(idx), self.base), who
        return self.given_cache[key]

    def centre(self, view, seed, n=8):
        """Unit task embedding [tasks, d] from the examples."""
        rows, who = self.given_rows(seed, n)
        at = torch.as_tensor([self.at[int(i)] for i in rows.idx], device=self.dev)
        return S.unit(S.mean_by(self.unit[view][at], who, len(self.tasks)))

    def with_front(self, seed, n, order=0):
        """Test rows with the user's first n examples in front, in their own order or another."""
        key = "front", seed, n, order
        if key not in self.given_cache:
            shown = {t: tuple(self.data.given(t, seed)[:n]) for t in self.tasks}
            if order:
                rng = np.random.default_rng(order)
                shown = {t: tuple(rng.permutation(x).tolist()) for t, x in shown.items()}
            self.given_cache[key] = RowSet(self.data, self.test.idx, self.base, front=[shown[t] for t in self.test.task], lengths=(self.line,))
            log("test rows with", n, "in front:", self.given_cache[key].tokens, "tokens")
        return self.given_cache[key]

    def alone(self, seed, n=8):
        """The users' examples as given_rows, right answers only."""
        key = "alone", seed, n
        if key not in self.given_cache:
            rows, who = self.given_rows(seed, n)
            self.given_cache[key] = RowSet(self.data, rows.idx, self.base, right_only=True), who
        return self.given_cache[key]

    def halves(self, seed, n=8, tasks=None, **more):
        """The users' examples as given_rows, each half with the other in front."""
        key = ("halves", seed, n, None if tasks is None else tuple(tasks), *more)
        if key not in self.given_cache:
            rows, who = self.given_rows(seed, n, tasks)
            front = []
            for t in (tasks or self.tasks):
                mine = list(self.data.given(t, seed, n))
                front += [tuple(mine[1 - k % 2::2]) for k in range(len(mine))]
            self.given_cache[key] = RowSet(self.data, rows.idx, self.base, front=front, lengths=(self.line,), **more), who
        return self.given_cache[key]


class Job:
    def __init__(self, lab, spec, out):
        self.lab, self.spec, self.out = lab, spec, out
        self.seed, self.n, self.kind = spec.get("seed", 1), spec.get("n", 1), spec["kind"]
        self.result = {"job": spec, "rows": {}, "model": os.path.basename(lab.args.model), "device": device_name(lab.dev),
                       "tasks": [lab.data.names[t] for t in lab.tasks]}
        self.shots = spec.get("shots", 8)
        self.light, self.general = spec.get("light", False), None

    # ---- rows ----
    def record(self, name, score, begin, **more):
        lab = self.lab
        ok = score[0] > 0.5
        by = {}
        for k, t in enumerate(lab.tasks):
            by.setdefault(lab.data.groups[lab.data.group[t]], []).append(ok[lab.test_task_np == k].mean())
        macro = {g: round(100 * float(np.mean(v)), 2) for g, v in by.items()}
        self.result["rows"][name] = {"bits": np.packbits(ok).tobytes().hex(), "macro": macro,
                                     "loss": round(float(score[1].mean()), 4), "s": round(time.time() - begin, 2), **more}
        log(self.spec["name"], name, macro)

    def weighted(self, name, w, begin, form=None, keep=False, by_row=False, **more):
        """Scores weights [tasks, n], or by test row, or None; also with worked examples in front and a memory, where the job asks for it."""
        lab, form = self.lab, form or self.form
        if name not in self.spec.get("score", [name]):
            return
        for n in [] if by_row else self.spec.get("front", []):
            self.in_front(name, n, form, w)
        if not by_row and name in self.spec.get("memory", []):
            self.memory(name, lab.alone(self.seed, self.shots), lab.test, form, w)
        score = lab.test.score(form, self.ad, w if by_row or w is None else w[lab.test_task], self.pool.scale)
        if keep:
            self.out_scores[name] = lab.test.option_scores()
        self.record(name, score, begin, **more)

    def in_front(self, name, n, form, w):
        """A row with worked examples in front. w: weights [tasks, n] or None."""
        lab, name = self.lab, "%s, %d in front" % (name, n)
        self.record(name, lab.with_front(self.seed, n).score(form, self.ad, None if w is None else w[lab.test_task], self.scale()), time.time())
        if name in self.spec.get("guide", []):
            self.guide(name, n, form, w)
        if name in self.spec.get("memory", []):
            self.memory(name, lab.halves(self.seed, n, right_only=True), lab.with_front(self.seed, n), form, w)

    def guide(self, name, n, form, w):
        """The same with the prompt in several orders of the examples, and guided by the one without them."""
        lab, begin, at = self.lab, time.time(), None if w is None else w[self.lab.test_task]
        sets = [lab.with_front(self.seed, n, order) for order in range(4)] + [lab.with_front(self.seed, 0)]
        prompts = Prompts(sets, [s.hidden(form, self.ad, at, self.scale()) for s in sets])
        for k in (1, 4):
            for a in (-0.5, -0.25, 0, 0.25, 0.5, 1):
                if k > 1 or a:
                    self.record("%s, %d orders, guide %g" % (name, k, a), prompts.score([(1 + a) / k] * k + [0] * (4 - k) + [-a]), begin)

    def memory(self, name, given, test, form, w):
        """The same with a memory of the user's examples. given: (RowSet, task number per row)."""
        lab, (rows, who), begin = self.lab, given, time.time()
        weights = lambda at: None if w is None else w[at]
        m = Memory(rows, who, rows.hidden(form, self.ad, weights(who), self.scale()))
        hidden = test.hidden(form, self.ad, weights(lab.test_task), self.scale())
        for label, add in m.variants():
            self.record("%s, memory %s" % (name, label), test.score(hidden=hidden, add=Memory.by_task(add, lab.test_task)), begin)

    def scale(self):
        return self.pool.scale if self.ad else 1.0

    # ---- training ----
    def train(self):
        """Leaves pool, ad, form, and by kind a, c, tau, names and proto of the index."""
        if self.spec.get("load"):
            self.load(os.path.join(self.out, self.spec["load"]))
        elif self.lab.args.crayon and self.spec.get("trainer") != "torch":
            self.train_crayon()
        else:
            self.train_torch()

    def train_crayon(self):
        """The same training by `crayon pool train --device cuda`, from the same rows."""
        lab, spec, args = self.lab, self.spec, self.lab.args
        if lab.dev.startswith("cuda"):
            torch.cuda.empty_cache()
        path = os.path.join(self.out, spec["name"] + ".pool.gguf")
        files = [f"{args.train}/{n}.train.jsonl.xz" for n in (("clear",) if spec.get("tasks") == "clear" else ("clear", "other"))]
        if spec.get("files"):
            files = [f"{args.train}/{n}.train.jsonl.xz" for n in spec["files"]]
        files = [f for f in files if os.path.getsize(f) > 32]  # an empty .xz: a tiny set may have no task of one kind
        if spec.get("n_tasks"):
            files = [self.some_tasks(files, spec["n_tasks"])]
        kind = {"library": ["library", "--form", spec.get("form", "shared")], "centroid": ["centroid"], "lora": ["lora"], "clusters": ["centroid", "--form", "separate", "--hard"]}
        command = [args.crayon, "pool", "train", "-m", args.model, "--kind", *kind[self.kind], "--n", str(self.n),
                   "--rank", str(spec.get("rank", 8)), "--lr", "%g" % spec["lr"], "--seed", str(self.seed),
                   "--epochs", str(spec.get("epochs", 2)), "--checkpoint-seconds", "-1", "--type", spec.get("type", "f16"), "--json", "--quiet", "-o", path]
        if spec.get("worked"):
            command += ["--worked", str(spec["worked"]), "--alone", "%g" % spec.get("alone", 0), "--general", "%g" % spec.get("general", 0)]
        if spec.get("steps"):
            command += ["--steps", str(spec["steps"])]
        command += ["--device", "cuda"] if lab.dev.startswith("cuda") else []
        begin = time.time()
        run = subprocess.run(command + files, capture_output=True, text=True,
                             env={**os.environ, "LD_LIBRARY_PATH": os.environ.get("CRAYON_LD", "")})
        if run.returncode:
            raise RuntimeError("crayon pool train: %d: %s" % (run.returncode, run.stderr[-600:]))
        self.result["train"] = {"by": "crayon", "seconds": round(time.time() - begin, 1), **json.loads(run.stdout)}
        self.result["train"].pop("tasks", None)
        self.load(path)
        log(spec["name"], json.dumps(self.result["train"])[:400])
        if not spec.get("keep_pool"):
            os.remove(path)

    def some_tasks(self, files, n):
        rows = {}
        for path in files:
            with lzma.open(path, "rt", encoding="utf-8") as f:
                for line in f:
                    rows.setdefault(json.loads(line)["task"], []).append(line)
        keep = np.random.default_rng(1).permutation(sorted(rows))[:n]
        path = os.path.join(self.out, self.spec["name"] + ".train.jsonl")
        with open(path, "w", encoding="utf-8") as f:
            f.writelines(line for t in sorted(keep) for line in rows[t])
        return path

    def load(self, path):
        """A crayon pool file."""
        lab, base = self.lab, self.lab.base
        r = gguf.GGUFReader(path)
        key = lambda k: r.fields["crayon.pool." + k].contents()
        self.n, rank = int(key("n")), int(key("rank"))
        self.form = "plain" if self.kind == "lora" else key("form")
        self.pool = pool = Adapters(base, self.form, self.n, rank, float(key("alpha")) / rank)
        # in 8 bits B is [N, n_out * rank]: the values lie in the same order
        t = {x.name: gguf.dequantize(np.asarray(x.data), x.tensor_type).reshape([int(k) for k in x.shape[::-1]])
             for x in r.tensors}
        put = lambda x: torch.as_tensor(np.array(x, np.float32), device=lab.dev)
        for name in LINEARS:
            get = lambda i, h: t["blk.%d.%s.weight.lora_%s" % (i, TENSOR[name], h)]
            pool.a[name] = put(np.stack([get(i, "a").reshape(-1, base.inp[name]) for i in range(base.layers)]))
            # B [N, n_out, rank] -> [N * rank, n_out]
            pool.b[name] = put(np.stack([get(i, "b").reshape(self.n, base.out[name], rank).transpose(0, 2, 1)
                                         .reshape(-1, base.out[name]) for i in range(base.layers)]))
        self.ad = pool.cast()
        if "index.qx.mean" in t:
            stats = {"qx": (put(t["index.qx.mean"]), None)}
            self.proto = {"qx": put(t["index.qx.proto"])}
            if "index.middle.mean" in t:
                stats["mid"] = put(t["index.middle.mean"]), put(t["index.middle.std"])
                self.proto["mid"] = put(t["index.middle.proto"])
            lab.use_stats(stats)
            self.a = put(t["index.weights"])
            self.names = list(key("tasks")) if "crayon.pool.tasks" in r.fields else []
            if self.names and self.names[-1] == "any task":  # weights that all tasks share; it has no prototype
                self.general, self.a, self.names = self.a[-1], self.a[:-1], self.names[:-1]
                self.proto = {v: x[:-1] for v, x in self.proto.items()}
            self.c, self.tau = self.proto["qx"], float(key("tau_qx")) if "crayon.pool.tau_qx" in r.fields else 0.1

    def train_torch(self):
        lab, spec = self.lab, self.spec
        tasks = [t for t in lab.pool_tasks if spec.get("tasks", "all") == "all" or lab.data.clear[t]]
        if spec.get("n_tasks"):
            tasks = sorted(np.random.default_rng(1).permutation(tasks)[:spec["n_tasks"]].tolist())
        self.tasks = tasks
        lines, s = (4, 256) if lab.args.small else (48, 256)
        epochs = spec.get("epochs", 2)
        bt = Batches(lab.data, tasks, self.seed, epochs, lines, s)
        dev, base = lab.dev, lab.base
        ids, pos, row, task, src, target, weight = (torch.as_tensor(x, device=dev) for x in (
            bt.ids, bt.pos, bt.row, bt.task, bt.src, bt.target, bt.weight))
        form = {"library": "shared", "centroid": "shared", "lora": "plain", "clusters": "separate"}[self.kind]
        self.form = form
        rank = spec.get("rank", 8)
        self.pool = pool = Adapters(base, form, self.n, rank, 2.0, self.seed)
        params, groups = pool.tensors(), []
        for p in params:
            p.requires_grad_()
        lr = spec["lr"]
        groups.append({"params": params, "lr": lr})
        w_table = None
        if self.kind == "library":
            g = torch.Generator().manual_seed(self.seed + 1000)
            a = 1 / self.n + 0.5 * torch.randn(len(tasks), self.n, generator=g) / self.n ** 0.5
            self.a = a.to(dev).requires_grad_()
            groups.append({"params": [self.a], "lr": spec.get("lr_weights", 10 * lr),
                           "weight_decay": spec.get("decay", 0.0)})
        elif self.kind in ("centroid", "clusters"):
            self.cluster(tasks)
            at = torch.as_tensor([lab.pool_tasks.index(t) for t in lab.data.task[bt.row_id]], device=dev)
            if self.kind == "clusters":  # a task's rows go to the task's own cluster
                w_table = torch.nn.functional.one_hot((lab.proto["mid"] @ self.c.T).argmax(1), self.n)[at].float()
            else:
                u = self.row_units(bt.row_id, "qx")
                w_table = (u @ self.c.T / self.tau).softmax(1)
        opt = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, fused=dev.startswith("cuda"))
        base_lr = [x["lr"] for x in opt.param_groups]
        warm, losses = max(1, bt.n // 20), []
        if dev.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        begin = time.time()
        for k in range(bt.n):
            f = (k + 1) / warm if k < warm else 0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * (k - warm) / (bt.n - warm)))
            for x, b in zip(opt.param_groups, base_lr):
                x["lr"] = b * f
            w = None
            if self.kind == "library":
                w = torch.nn.functional.embedding(task[k].long(), self.a).to(base.dtype)
            elif w_table is not None:
                w = w_table[row[k].clamp(min=0).long()].to(base.dtype)
            h = forward(base, ids[k], pos[k].long(), row[k], torch.zeros_like(row[k]), form, pool.cast(), w, pool.scale, fn=lab.fn)
            logits = h.flatten(0, 1)[src[k].long()] @ base.head.T
            loss = (torch.nn.functional.cross_entropy(logits.float(), target[k].long(), reduction="none") * weight[k]).sum()
            opt.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for x in opt.param_groups for p in x["params"]], 1.0)
            opt.step()
            losses.append(loss.detach())
            if k == 2:
                sync(dev)
                begin2, seen = time.time(), 3
        sync(dev)
        losses = torch.stack(losses).tolist()
        tenth = max(1, bt.n // 20)
        self.result["train"] = {
            "steps": bt.n, "tokens": bt.tokens, "seconds": round(time.time() - begin, 1), "tasks": len(tasks),
            "tokens_per_s": round(bt.tokens * (bt.n - 3) / bt.n / (time.time() - begin2)) if bt.n > 3 else 0,
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2 ** 30, 2) if dev.startswith("cuda") else 0,
            "loss_first": float(np.mean(losses[:tenth])), "loss_last": float(np.mean(losses[-tenth:])),
            "parameters": sum(p.numel() for p in params), "lines": lines, "line": s}
        for p in params:
            p.requires_grad_(False)
        if self.kind == "library":
            self.a = self.a.detach()
            keep = torch.as_tensor([lab.pool_tasks.index(t) for t in tasks], device=dev)
            self.proto = {v: lab.proto[v][keep] for v in lab.proto}
            self.names = [lab.data.names[t] for t in tasks]
        elif self.kind != "lora":
            self.proto = {"mid": self.c} if self.kind == "clusters" else {"qx": self.c}
        with torch.no_grad():
            self.ad = pool.cast()
        log(spec["name"], self.result["train"])

    def row_units(self, idx, view):
        """Unit embeddings of training rows (those beyond the cached ones are made here)."""
        lab = self.lab
        if not hasattr(lab, "train_units"):
            lab.train_units = {}
            every = np.concatenate([lab.data.of[t, TRAIN] for t in lab.pool_tasks])
            raw = embed(lab.base, lab.data, every)[0]
            x = S.unit(raw - raw.mean(0))
            lab.train_units["qx"] = x, {int(i): k for k, i in enumerate(every)}
        x, at = lab.train_units[view]
        return x[torch.as_tensor([at[int(i)] for i in idx], device=lab.dev)]

    def cluster(self, tasks):
        lab = self.lab
        if self.kind == "clusters":
            keep = torch.as_tensor([lab.pool_tasks.index(t) for t in tasks], device=lab.dev)
            self.c = S.kmeans(lab.proto["mid"][keep], self.n, self.seed)
        else:
            x = self.row_units(np.concatenate([lab.data.of[t, TRAIN][:64] for t in tasks]), "qx")
            self.c = S.kmeans(x, self.n, self.seed, restarts=3)
            self.tau = S.fit_tau(x @ self.c.T)

    # ---- the rows of each kind ----
    def run(self):
        lab = self.lab
        lab.test_task_np = lab.test_task.cpu().numpy()
        self.out_scores = {}
        begin = time.time()
        getattr(self, "rows_" + self.kind)()
        self.result["seconds"] = round(time.time() - begin, 1)
        name = os.path.join(self.out, self.spec["name"])
        if self.out_scores:
            np.savez_compressed(name + ".scores.npz", **{k.replace(":", "_"): np.concatenate(v).astype(np.float16)
                                                         for k, v in self.out_scores.items()})
        if self.spec.get("keep_pool") and not lab.args.crayon:
            self.save(name)
        with open(name + ".json.tmp", "w") as f:
            json.dump(self.result, f)
        os.replace(name + ".json.tmp", name + ".json")

    def save(self, name):
        """The trained tensors as float16, for lab_pool.py."""
        x = {k: v.cpu().half().numpy() for n in LINEARS for k, v in (("a_" + n, self.pool.a[n]), ("b_" + n, self.pool.b[n]))}
        if self.kind == "library":
            x["weights"] = self.a.cpu().numpy()
        np.savez(name + ".pool.npz", names=np.array(self.names), scale=self.pool.scale, **x)

    def rows_base(self):
        lab = self.lab
        self.form, self.ad = None, None
        begin = time.time()
        score = lab.test.score()
        self.out_scores["base"] = lab.test.option_scores()
        self.record("base", score, begin)
        self.result["test_rows"] = [int(i) for i in lab.test.idx]
        self.result["test_task"] = [lab.data.names[t] for t in lab.test.task]
        self.result["group"] = {lab.data.names[t]: lab.data.groups[lab.data.group[t]] for t in lab.tasks}
        for s in self.spec.get("seeds", [1]):
            for n in self.spec.get("front", [5]):
                name = "base %d-shot seed %d" % (n, s)
                self.record(name, lab.with_front(s, n).score(), time.time())
                if n in self.spec.get("guide", []):
                    self.seed = s
                    self.guide(name, n, None, None)
                if self.spec.get("memory"):
                    self.memory(name, lab.halves(s, n, right_only=True), lab.with_front(s, n), None, None)
        if not self.spec.get("front"):
            self.scope()

    def aurocs(self, sim, rng):
        """Per task: AUROC of its own rows' similarity [rows, tasks] to it against up to 400 rows of others, drawn by rng."""
        for k in range(len(self.lab.tasks)):
            mine = self.lab.test_task_np == k
            other = rng.permutation(np.flatnonzero(~mine))[:400]
            a, b = sim[mine, k], sim[other, k]
            yield float((a[:, None] > b[None]).mean() + 0.5 * (a[:, None] == b[None]).mean())

    def scope(self):
        """AUROC of a test row's cosine to its own task's examples against rows of other tasks."""
        lab, out = self.lab, {}
        rng = np.random.default_rng(1)
        for view in ("qx", "mid"):
            c = lab.centre(view, 1)
            sim = (lab.test_unit[view] @ c.T).cpu().numpy()  # [rows, tasks]
            out[view] = {lab.data.names[t]: round(x, 4) for t, x in zip(lab.tasks, self.aurocs(sim, rng))}
            out[view + " own"] = [round(float(x), 4) for x in sim[np.arange(len(sim)), lab.test_task_np]]
        self.result["scope"] = out

    def anchor(self, label, per, rank, grid, given_seed, groups=("validation", "unseen", "mmlu", "pool"), front=0, chains=False):
        """Gradient steps on each task's own rows, from the adapters that per(tasks) gives. front: worked examples in front
        of the test rows; each half of the user's rows is then learned with the other in front, or with chains all in chains."""
        lab, d = self.lab, self.lab.data
        every = [t for t in lab.tasks if d.groups[d.group[t]] in groups]
        size = self.spec.get("anchor_tasks") or (24 if rank > 64 else 96)
        for lr, marks in grid:
            begin, score = time.time(), {k: np.zeros((3, len(lab.test))) for k in marks}
            tuned = 0.0
            # tasks whose rows need about as many lines go together
            length = {t: sum(len(d.prompt(i)) for i in d.given(t, given_seed, self.shots)) for t in every}
            every.sort(key=lambda t: length[t])
            for c in range(0, len(every), size):
                tasks = every[c:c + size]
                if front:
                    shown = [tuple(d.given(t, given_seed)[:front]) for t in tasks for _ in d.of[t, TEST]]
                    if chains:
                        mine = [list(d.given(t, given_seed, self.shots)) for t in tasks]
                        tune = lambda k, mine=mine: Chains(d, mine, lab.base, self.spec["worked"], lab.line, (given_seed, k))
                    else:
                        tune = lab.halves(given_seed, self.shots, tasks, right_only=True, by_task=True)[0]
                    test = RowSet(d, np.concatenate([d.of[t, TEST] for t in tasks]), lab.base, by_task=True, front=shown, lengths=(lab.line,))
                else:
                    tune = RowSet(d, np.concatenate([d.given(t, given_seed, self.shots) for t in tasks]), lab.base, right_only=True, by_task=True, lengths=(512,))
                    test = RowSet(d, np.concatenate([d.of[t, TEST] for t in tasks]), lab.base, by_task=True, lengths=(512,))
                at = torch.as_tensor([lab.number[t] for t in tasks], device=lab.dev)
                ta = S.TaskAdapters(lab.base, per(at), self.pool.scale)
                where = np.concatenate([np.flatnonzero(lab.test_task_np == lab.number[t]) for t in tasks])

                def mark(k):
                    score[k][:, where] = ta.score(test)
                t0 = time.time()
                ta.tune(tune, lr, max(marks), marks, mark)
                sync(lab.dev)
                tuned += time.time() - t0
                del ta
            for k in marks:
                how = (" in chains" if chains else "", ", %d in front" % front if front else "")
                self.record("%s%s lr %g steps %d%s" % (label, how[0], lr, k, how[1]), score[k], begin, tune_s=round(tuned, 1))

    def rows_lora(self):
        lab, seed = self.lab, self.seed
        self.train()
        begin = time.time()
        self.weighted("one LoRA", None, begin, keep=True)
        if self.light:
            return
        groups = self.spec.get("groups", 0)
        if groups:  # REFINE over the rank groups
            self.form, self.pool.n, self.pool.rank = "separate", groups, self.spec["rank"] * self.n // groups
            rows, who = lab.given_rows(seed, self.shots)
            losses = S.Losses(rows, who, len(lab.tasks), self.form, self.ad, self.pool.scale)
            begin = time.time()
            one = torch.ones(len(lab.tasks), groups, device=lab.dev)
            for sigma in self.spec.get("sigmas", [0.3]):
                for k, w in S.refine(losses, one, sigma, 32, seed, marks=(32,)).items():
                    self.weighted("one LoRA, REFINE %d sigma %g" % (k, sigma), w, begin)
        if self.spec.get("anchor"):
            full = lambda at: {n: (self.pool.a[n][None].expand(len(at), -1, -1, -1), self.pool.b[n][None].expand(len(at), -1, -1, -1)) for n in LINEARS}
            clone = lambda at: {n: tuple(x.clone() for x in v) for n, v in full(at).items()}
            rank = self.spec["rank"] * self.n if groups == 0 else groups * self.pool.rank
            groups, grid = self.spec.get("anchor_groups", ("validation", "unseen", "mmlu", "pool")), [(lr, tuple(m)) for lr, m in self.spec["anchor"]]
            for front in self.spec.get("anchor_front", [0]):
                self.anchor("one LoRA + gradient", clone, rank, grid, seed, groups, front)
            for front in self.spec.get("anchor_chains", []):
                self.anchor("one LoRA + gradient", clone, rank, grid, seed, groups, front, chains=True)

    def searches(self, losses, starts, sigma, not_negative, a_std=None):
        """PICK, REFINE and tuned rows from starts [(name, w)]."""
        seed = self.seed
        begin = time.time()
        w0, at = S.pick(losses, [w for _, w in starts])
        self.weighted("PICK", w0, begin, starts=[n for n, _ in starts], picked=np.bincount(at.cpu().numpy(), minlength=len(starts)).tolist())
        begin = time.time()
        marks = tuple(self.spec.get("evals", (32, 128)))
        for k, w in S.refine(losses, w0, sigma, max(marks), seed, not_negative, marks).items():
            self.weighted("REFINE %d" % k, w, begin, keep=k == min(marks))
            if k == min(marks):
                self.refined = w
            self.weighted("REFINE %d averaged with PICK" % k, (w + w0) / 2, begin)
        for lr, pull, marks in self.spec.get("tuned", []):
            begin = time.time()
            for k, w in S.tune_weights(losses, w0, lr, max(marks), pull, tuple(marks)).items():
                self.weighted("tuned weights lr %g pull %g steps %d" % (lr, pull, k), w, begin)
        return w0

    def rows_library(self):
        lab, seed, dev = self.lab, self.seed, self.lab.dev
        self.train()
        nt = len(lab.tasks)
        proto = self.proto
        sim = {v: lab.centre(v, seed, self.shots) @ proto[v].T for v in proto}
        knn = lambda s, tau: (s / tau).softmax(1) @ self.a
        mean = self.a.mean(0)[None].expand(nt, -1)
        begin = time.time()
        self.weighted("KNN middle", knn(sim["mid"], 0.03), begin, keep=True)
        rows, who = lab.given_rows(seed, self.shots)
        losses = S.Losses(rows, who, nt, self.form, self.ad, self.pool.scale)
        starts = [("knn .03", knn(sim["mid"], 0.03)), ("knn .1", knn(sim["mid"], 0.1)), ("knn .3", knn(sim["mid"], 0.3)),
                  ("mean", mean), ("nearest", self.a[sim["mid"].argmax(1)])]
        sigma = 0.3 * float(self.a.var(0).mean().sqrt())
        if self.general is not None:
            starts.append(("general", self.general[None].expand(nt, -1)))
            self.weighted("GENERAL", starts[-1][1], time.time())
        if self.spec.get("layers"):
            self.other_layers(self.spec["layers"])
        if self.light:
            w0 = self.searches(losses, starts, sigma, False)
            for n in self.spec.get("shots_list", []):
                self.other_examples("%d examples" % n, lab.given_rows(seed, n), lab.centre("mid", seed, n), proto, knn, mean, sigma)
            if self.spec.get("in_context"):
                self.searches_in_context(starts, sigma)
            if self.spec.get("anchor"):
                self.anchors_of_blend(w0)
            return
        self.weighted("MEAN", mean, time.time())
        if not self.spec.get("brief"):
            self.weighted("uniform", torch.full((nt, self.n), 1 / self.n, device=dev), time.time())
            for v, label in (("qx", "q_x"), ("mid", "middle")):
                self.weighted("NEAREST " + label, self.a[sim[v].argmax(1)], time.time())
                if v == "qx":
                    self.weighted("KNN " + label, knn(sim[v], 0.03), time.time())
            for tau in (0.1,):
                self.weighted("KNN middle tau %g" % tau, knn(sim["mid"], tau), time.time())
            q = lab.test_unit["mid"] @ proto["mid"].T
            self.weighted("per query KNN middle", knn(q, 0.03), time.time(), by_row=True)
        name = {n: k for k, n in enumerate(self.names)}
        own = torch.stack([self.a[name[lab.data.names[t]]] if lab.data.names[t] in name else mean[0] for t in lab.tasks])
        self.weighted("told which task", own, time.time())
        w0 = self.searches(losses, starts, sigma, False)
        if self.spec.get("in_context"):
            self.searches_in_context(starts, sigma)
        for n in self.spec.get("shots_list", []):
            self.other_examples("%d examples" % n, lab.given_rows(seed, n), lab.centre("mid", seed, n), proto, knn, mean, sigma)
        if self.spec.get("with_shots"):
            score = lab.with_front(seed, 5).score(self.form, self.ad, self.refined[lab.test_task], self.pool.scale)
            self.record("REFINE 32 with 5-shot prompts", score, time.time())
        if self.spec.get("robust"):
            self.robust(proto, knn, mean, sigma)
        if self.spec.get("anchor"):
            self.anchors_of_blend(w0)

    def searches_in_context(self, starts, sigma):
        """PICK and REFINE by the loss of each half of the examples with the other in front."""
        lab = self.lab
        losses = S.Losses(*lab.halves(self.seed, self.shots), len(lab.tasks), self.form, self.ad, self.pool.scale)
        w0, _ = S.pick(losses, [w for _, w in starts])
        self.weighted("PICK in context", w0, time.time())
        begin = time.time()
        evals = min(self.spec.get("evals", (32,)))
        w = S.refine(losses, w0, sigma, evals, self.seed)[evals]
        self.weighted("REFINE in context", w, begin)
        self.weighted("REFINE in context averaged with PICK", (w + w0) / 2, begin)

    def other_layers(self, layers):
        """NEAREST and KNN by the mean hidden state after other numbers of layers; AUROC of scope."""
        lab, d = self.lab, self.lab.data
        place = {d.names[t]: t for t in lab.pool_tasks}
        train = [d.of[place[n], TRAIN][:64] for n in self.names]
        whose = torch.as_tensor(np.repeat(np.arange(len(train)), [len(x) for x in train]), device=lab.dev)
        rows, who = lab.given_rows(self.seed, self.shots)
        rng = np.random.default_rng(1)
        for k in layers:
            begin = time.time()
            x = embed(lab.base, d, np.concatenate([*train, rows.idx, lab.test.idx]), k)[1]
            x, y, z = x.split((len(whose), len(rows), len(lab.test)))
            m, s = x.mean(0), x.std(0).clamp(min=1e-6)
            x, y, z = (S.unit((v - m) / s) for v in (x, y, z))
            c = S.unit(S.mean_by(y, who, len(lab.tasks)))
            sim = c @ S.unit(S.mean_by(x, whose, len(train))).T
            scope = np.mean(list(self.aurocs((z @ c.T).cpu().numpy(), rng)))
            self.weighted("NEAREST, %d layers" % k, self.a[sim.argmax(1)], begin, scope=round(float(scope), 4))
            self.weighted("KNN, %d layers" % k, (sim / 0.03).softmax(1) @ self.a, begin)

    def anchors_of_blend(self, w0):
        """Gradient steps on the adapter that a blend gives."""
        grid = [(lr, tuple(m)) for lr, m in self.spec["anchor"]]
        for label, w in (("blend + gradient", w0), ("REFINE + gradient", self.refined)):
            if label in self.spec.get("anchor_from", ["blend + gradient"]):
                self.anchor(label, lambda at: self.pool.blended(w[at]), self.pool.rank, grid, self.seed)
        for key in ("anchor_front", "anchor_chains"):
            for front in self.spec.get(key, []):
                self.anchor("REFINE + gradient", lambda at: self.pool.blended(self.refined[at]), self.pool.rank, grid, self.seed, front=front,
                            chains=key == "anchor_chains")

    def other_examples(self, label, given, centre, proto, knn, mean, sigma):
        """KNN, PICK and REFINE from other examples than the usual ones."""
        lab = self.lab
        rows, who = given
        losses = S.Losses(rows, who, len(lab.tasks), self.form, self.ad, self.pool.scale)
        s = centre @ proto["mid"].T
        begin = time.time()
        self.weighted("KNN middle, " + label, knn(s, 0.03), begin)
        w0, _ = S.pick(losses, [knn(s, 0.03), knn(s, 0.1), knn(s, 0.3), mean, self.a[s.argmax(1)]])
        self.weighted("PICK, " + label, w0, begin)
        self.weighted("REFINE, " + label, S.refine(losses, w0, sigma, 32, self.seed)[32], begin)

    def robust(self, proto, knn, mean, sigma):
        """Examples that are half or wholly those of another task."""
        lab, d = self.lab, self.lab.data
        shuffled = np.random.default_rng(7).permutation(lab.tasks)
        other = dict(zip(shuffled.tolist(), np.roll(shuffled, 1).tolist()))
        for label, share in (("half of another task", 2), ("all of another task", 1)):
            idx, who = [], []
            for t in lab.tasks:
                own, wrong = list(d.given(t, self.seed)), list(d.given(int(other[t]), self.seed))
                mine = wrong if share == 1 else [x for p in zip(own[:4], wrong[:4]) for x in p]
                idx += mine
                who += [lab.number[t]] * len(mine)
            who = torch.as_tensor(who, device=lab.dev)
            at = torch.as_tensor([lab.at[int(i)] for i in idx], device=lab.dev)
            centre = {"mid": S.unit(S.mean_by(lab.unit["mid"][at], who, len(lab.tasks)))}
            self.other_examples(label, (RowSet(d, np.array(idx), lab.base), who), centre["mid"], proto, knn, mean, sigma)

    def rows_centroid(self):
        lab, seed = self.lab, self.seed
        self.train()
        nt = len(lab.tasks)
        q = lab.centre("qx", seed, self.shots)
        soft = (q @ self.c.T / self.tau).softmax(1)
        self.weighted("centroid SOFTMAX", soft, time.time(), keep=True)
        if self.light:
            return
        by_row = (lab.test_unit["qx"] @ self.c.T / self.tau).softmax(1)
        rows, who = lab.given_rows(seed, self.shots)
        at = torch.as_tensor([lab.at[int(i)] for i in rows.idx], device=lab.dev)
        meanw = S.mean_by((lab.unit["qx"][at] @ self.c.T / self.tau).softmax(1), who, nt)
        near = torch.nn.functional.one_hot((q @ self.c.T).argmax(1), self.n).float()
        simp = S.simplex(q, self.c)
        uni = torch.full((nt, self.n), 1 / self.n, device=lab.dev)
        for name, w in (("uniform", uni), ("NEAREST", near), ("MEANW", meanw), ("SIMPLEX", simp)):
            self.weighted("centroid " + name, w, time.time())
        self.weighted("centroid per query", by_row, time.time(), by_row=True)
        if self.spec.get("brief"):
            return
        losses = S.Losses(rows, who, nt, self.form, self.ad, self.pool.scale)
        starts = [("softmax", soft), ("meanw", meanw), ("simplex", simp), ("uniform", uni), ("nearest", near)]
        w0, _ = S.pick(losses, [w for _, w in starts])
        self.weighted("centroid PICK", w0, time.time())
        begin = time.time()
        for k, w in S.refine(losses, w0, 0.3 * (1 / self.n) ** 0.5, 32, seed, True).items():
            self.weighted("centroid REFINE %d" % k, w, begin)

    def rows_clusters(self):
        """Separate adapters by cluster: LoRAHub, AdapterSoup, Arrow and their like."""
        lab, seed = self.lab, self.seed
        self.train()
        nt, n = len(lab.tasks), self.n
        view = "mid" if "mid" in self.proto else "qx"
        s = lab.centre(view, seed, self.shots) @ self.proto[view].T
        for k in (1, 3, 5):
            w = torch.zeros(nt, n, device=lab.dev).scatter_(1, s.topk(min(k, n), 1).indices, 1 / min(k, n))
            self.weighted("AdapterSoup k %d" % k, w, time.time())
            if self.light:
                return
        self.weighted("clusters uniform", torch.full((nt, n), 1 / n, device=lab.dev), time.time())
        begin = time.time()
        score = lab.test.score("arrow", self.pool.arrow(), None, self.pool.scale)
        self.record("Arrow", score, begin)
        rows, who = lab.given_rows(seed, self.shots)
        losses = S.Losses(rows, who, nt, self.form, self.ad, self.pool.scale)
        zero = torch.zeros(nt, n, device=lab.dev)
        for sigma in self.spec.get("sigmas", [0.1]):
            begin = time.time()
            for k, w in S.refine(losses, zero, sigma, 40, seed, l1=0.05).items():
                self.weighted("LoRAHub %d sigma %g" % (k, sigma), w.clamp(-1.5, 1.5), begin)
        begin = time.time()
        w3 = torch.zeros(nt, n, device=lab.dev).scatter_(1, s.topk(min(3, n), 1).indices, 1 / min(3, n))
        for k, w in S.refine(losses, w3, 0.1, 32, seed).items():
            self.weighted("AdapterSoup k 3 + REFINE %d" % k, w, begin)


def sync(dev):
    if dev.startswith("cuda"):
        torch.cuda.synchronize()


def device_name(dev):
    return torch.cuda.get_device_name(0) if dev.startswith("cuda") else "CPU"


def best_try(plan, spec, out):
    """The job among the same kind's light ones with the best validation accuracy, or None while some are missing."""
    best = 0, None
    for other in plan:
        if other.get("tries") != spec["lr_from"]:
            continue
        path = os.path.join(out, other["name"] + ".json")
        if not os.path.exists(path):
            return None
        r = json.load(open(path))
        got = max(x["macro"].get("validation", 0) for n, x in r["rows"].items() if n in spec["lr_row"])
        best = (got, other) if got >= best[0] else best
    return best[1]


def main():
    p = argparse.ArgumentParser()
    for n in ("model", "pack", "plan", "out"):
        p.add_argument("--" + n, required=True)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--deadline", type=float, default=1e9, help="seconds from the start")
    p.add_argument("--job-s", type=float, default=0, help="start no job with less time than this left")
    p.add_argument("--crayon", help="the program that trains the pools; without it PyTorch does")
    p.add_argument("--train", help="folder of {clear,other}.train.jsonl.xz for --crayon")
    p.add_argument("--only", default="", help="jobs that score this group of tasks alone")
    p.add_argument("--small", action="store_true")
    p.add_argument("--no-compile", action="store_true")
    args = p.parse_args()
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = True
    os.makedirs(args.out, exist_ok=True)
    lab, plan = Lab(args), json.load(open(args.plan))
    torch._dynamo.config.cache_size_limit = 64
    while True:
        waiting = ran = False
        for spec in plan:
            path = os.path.join(args.out, spec["name"])
            if spec.get("only", "") != args.only:
                continue
            if os.path.exists(path + ".json") or os.path.exists(path + ".lock"):
                continue
            if time.time() - START > args.deadline - max(args.job_s, spec.get("needs_s", 0)):
                continue
            if "after" in spec and not os.path.exists(os.path.join(args.out, spec["after"] + ".json")):
                waiting = True
                continue
            if "lr_from" in spec:
                best = best_try(plan, spec, args.out)
                if best is None:
                    waiting = True
                    continue
                spec.update({k: best[k] for k in ("lr", "worked", "alone") if k in best})
            try:
                os.mkdir(path + ".lock")
            except FileExistsError:
                continue
            ran = True
            try:
                begin = time.time()
                Job(lab, spec, args.out).run()
                log(spec["name"], "done in %.1f s" % (time.time() - begin))
            except Exception:
                with open(path + ".failed", "w") as f:
                    traceback.print_exc(file=f)
                traceback.print_exc()
            if lab.dev.startswith("cuda"):
                torch.cuda.empty_cache()
            break
        if not ran:
            if not waiting or time.time() - START > args.deadline - args.job_s:
                break
            time.sleep(0.5)
    log("end")


sys.setrecursionlimit(10000)
main()
