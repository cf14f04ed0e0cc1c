#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the list of jobs for lab.py, by importance.

usage: plan.py smollm2|15m|ship|small > plan.json

Every kind of training tries three learning rates for one epoch with seed 1; the rate with the best
validation accuracy of the kind's own row is used for all its seeds. Then two epochs with seeds 1 to 3,
and ablations with seed 1. r is 8; N is 32 (SmolLM2) or 16 (15M). "small": a few steps of the 15M on a CPU, to
try the whole way; its numbers mean nothing. "ship": candidates for the shipped pool of SmolLM2, from ship.py's rows.
"""
import json
import sys

ROWS = {  # kind: (label, rows that choose its learning rate)
    "library": ("lib", ["KNN middle", "REFINE 32"]), "lora 1": ("lora-r", ["one LoRA"]), "lora N": ("lora-nr", ["one LoRA"]),
    "centroid": ("cen", ["centroid SOFTMAX"]), "clusters": ("sep", ["AdapterSoup k 1"]),
}


def small():
    job = lambda name, kind, **more: {"name": name, "kind": kind, "rank": 4, "n": 1, "seed": 1, "lr": 2e-3, "steps": 4, "light": True, **more}
    return [{"name": "base", "kind": "base", "seeds": [1]}, job("lora-r-seed1", "lora"), job("lora-nr-seed1", "lora", rank=16),
            job("lib-seed1", "library", n=4, evals=[4]), job("wlora-r-seed1", "lora", worked=3, alone=0.5, front=[2], memory=["one LoRA", "one LoRA, 2 in front"]),
            job("wlib-seed1", "library", n=4, evals=[4], worked=3, front=[2], memory=["PICK, 2 in front"])]


def ship():
    """Size, passes and seeds of the pool for SmolLM2 that ships, tried on the validation tasks alone (choose: ship.py)."""
    jobs = []
    for seed in (1, 2):
        for name, more in (("n8-e2", {}), ("n8-e1", {"epochs": 1}), ("n8-e3", {"epochs": 3}), ("n6-e2", {"n": 6}), ("n10-e2", {"n": 10}),
                           ("n16-r4-e2", {"n": 16, "rank": 4}), ("n8-e2-own", {"general": 0})):
            jobs.append({"name": f"ship-{name}-seed{seed}", "kind": "library", "n": 8, "rank": 8, "lr": 2e-3, "worked": 8, "general": 0.5, "seed": seed,
                         "epochs": 2, "files": ["ship"], "type": "q8_0", "light": True, "front": [8], "evals": [32], "only": "validation", "keep_pool": True, **more})
    return jobs


def further(job, rates):
    """Gradient steps from more starts, at more rates and in chains; adapters of the tasks with clear licences tuned alike; option scores for routing."""
    gentle = {"evals": [32], "front": [8], "anchor": [[3e-4, [8]]], "anchor_from": [], "anchor_front": [8], "score": ["REFINE 32 averaged with PICK", "one LoRA"]}
    library, lora = {"light": True, "lr": rates["library"], "worked": 8}, {"lr": rates["lora 1"], "worked": 5}
    for seed in (1, 2, 3):
        job("library", f"twgen-seed{seed}", **gentle, **library, general=0.5, seed=seed, anchor_chains=[8])
        job("library", f"twlib-seed{seed}", **gentle, **library, seed=seed, anchor_chains=[8])
        job("lora 1", f"lora-r-clear-seed{seed}", lr=rates["lora 1"], seed=seed, tasks="clear", anchor=[[1e-3, [4]]])
        job("lora 1", f"twlora-r-clear-seed{seed}", **gentle, **lora, seed=seed, tasks="clear")
        job("library", f"twgen-clear-seed{seed}", **gentle, **library, general=0.5, seed=seed, tasks="clear", n=16)
        job("lora 1", f"twlora-r-seed{seed}", **gentle, **lora, seed=seed, anchor_chains=[8])
    job("library", "rlib-seed1", light=True, lr=rates["library"], evals=[32], score=["REFINE 32"])
    for seed in (1, 2, 3):
        job("lora N", f"anr-seed{seed}", lr=rates["lora N"], seed=seed, anchor=[[3e-4, [4, 8]], [1e-4, [4, 8]]])
        job("centroid", f"wcen-seed{seed}", lr=2e-3, worked=8, seed=seed, front=[8], light=True)


def worked(job, big):
    """In-context tuning: rows of a task behind each other, each with those before it in view. Share of rows alone, number of
    rows and rate are tried on the validation tasks alone, for every kind alike."""
    rates = {"library": 2e-3, "lora 1": 1e-3, "lora N": 5e-4} if big else {"library": 1e-3, "lora 1": 4e-3, "lora N": 1e-3}
    rows = {"library": ["KNN middle, 8 in front", "REFINE 32, 8 in front", "REFINE in context, 8 in front"]}
    for kind, lr in rates.items():
        label = "w" + ROWS[kind][0]
        for name, more in (("k5", {"worked": 5}), ("k8", {"worked": 8}), ("k8-half", {"worked": 8, "alone": 0.5}), ("k8-slow", {"worked": 8, "lr": lr / 2})):
            job(kind, f"{label}-try-{name}", **{"lr": lr, "epochs": 1, "light": True, "tries": label, "evals": [32], "front": [8], "in_context": True,
                                                "only": "validation", **more})
    for seed in (1, 2, 3):
        for kind in rates:
            label = "w" + ROWS[kind][0]
            more = {"lr_from": label, "lr_row": rows.get(kind, ["one LoRA", "one LoRA, 8 in front"]), "front": [8], "evals": [32], "seed": seed, "light": big}
            if not big:
                more.update({"groups": 16, "sigmas": [0.1]} if kind == "lora N" else
                            {"in_context": True, "anchor": [[1e-3, [4]]], "anchor_front": [0, 8] if kind == "lora 1" else [8], "anchor_from": ["REFINE + gradient"]})
            if kind == "library" and big:
                job(kind, f"wgen-seed{seed}", **more, general=0.5)
            if big:  # a memory of the examples; gradient steps with them in front, but not at rank 256
                row = "REFINE 32 averaged with PICK" if kind == "library" else "one LoRA"
                more["memory"] = [row, row + ", 8 in front"]
                if kind != "lora N":
                    more.update(anchor=[[1e-3, [4]], [3e-4, [8]]], anchor_from=[], anchor_front=[8], light=kind == "library")
            job(kind, f"{label}-seed{seed}", **more)
    if big:  # more adapters, more epochs
        rest = {"worked": 8, "front": [8], "light": True, "evals": [32]}
        for n in (64, 128):
            job("library", f"wlib-n{n}", **rest, lr=rates["library"], n=n)
        trained = {"wlib": ("library", {}), "wlora-r": ("lora 1", {"worked": 5}), "wlora-nr": ("lora N", {}), "wgen": ("library", {"general": 0.5})}
        for label, (kind, more) in trained.items():
            more = {**rest, "lr": rates[kind], **more}
            row = "REFINE 32 averaged with PICK" if kind == "library" else "one LoRA"
            for seed in (1, 2, 3):
                job(kind, f"g{label}-seed{seed}", **more, seed=seed, guide=[row + ", 8 in front"])
                clear = {"n": 16} if kind == "library" else {"rank": 128} if kind == "lora N" else {}
                job(kind, f"{label}-clear-seed{seed}", **more, seed=seed, tasks="clear", **clear)
                if seed == 1 or label != "wlora-r":
                    job(kind, f"{label}-e4-seed{seed}", **{**more, "worked": 8}, seed=seed, epochs=4)
            if kind == "library":
                job(kind, f"{label}-e8-seed1", **more, epochs=8)
        job("library", "wsep-seed1", **rest, lr=rates["library"], n=8, form="separate", general=0.5)
        further(job, rates)


def main(model):
    if model in ("small", "ship"):
        json.dump(small() if model == "small" else ship(), sys.stdout, indent=0)
        return
    big = model == "smollm2"
    n = 32 if big else 16
    size = {"library": n, "lora 1": 1, "lora N": 1, "centroid": n, "clusters": n}
    rank = lambda k: 8 * n if k == "lora N" else 8
    rates = [5e-4, 1e-3, 2e-3] if big else [1e-3, 2e-3, 4e-3]
    jobs = []

    def job(kind, name, **more):
        jobs.append({"name": name, "kind": kind.split()[0], "n": size[kind], "rank": rank(kind), "seed": 1, **more})

    for kind, (label, _) in ROWS.items():
        for lr in rates:
            job(kind, f"{label}-try-{lr:g}", lr=lr, epochs=1, light=True, tries=kind, evals=[32])
    gentle = [[1e-3, [4]], [3e-4, [4, 8]]] if big else [[1e-3, [4]]]
    for seed in (1, 2, 3):
        first = seed == 1
        for kind, (label, row) in ROWS.items():
            more = {"lr_from": kind, "lr_row": row, "seed": seed}
            if kind == "library":
                more.update(evals=[32, 128] if first or not big else [32], tuned=[[0.3, 0.1, [8]]], anchor=gentle,
                            anchor_from=["REFINE + gradient"], with_shots=big)
                if first:
                    more.update(shots_list=[1, 3, 5, 50], robust=True, keep_pool=True)
            if kind == "lora N":
                more.update(groups=n, sigmas=[0.3] if big else [0.1, 0.3])
                if first or not big:
                    more["anchor"] = [[1e-3, [4]]]
            if kind == "lora 1":
                more["anchor"] = gentle if first else [[1e-3, [4]]]
            if kind == "centroid":
                more["brief"] = not first
            job(kind, f"{label}-seed{seed}", **more)
        if first:
            job("lora 1", "witness-lora-r", lr_from="lora 1", lr_row=["one LoRA"], light=True, trainer="torch")
            jobs.append({"name": "base", "kind": "base", "seeds": [1, 2, 3]})
    ablation = lambda name, **more: job("library", name, **{"lr_from": "library", "lr_row": ROWS["library"][1], "evals": [32], "light": True, **more})
    ablation("lib-clear", tasks="clear", keep_pool=True, n=16)
    for k in (8, 16, 64, 128) if big else (4, 8, 32, 64):
        ablation(f"abl-n{k}", n=k)
    if big:
        for k in (8, 16):
            for seed in (2, 3):
                ablation(f"abl-n{k}-seed{seed}", n=k, seed=seed)
        for r in (4, 16, 32):
            ablation(f"abl-r{r}", rank=r)
        ablation("abl-separate", form="separate", n=8)
        ablation("abl-e4", epochs=4)
        for k in (16, 32, 64, 128):
            ablation(f"abl-t{k}", n_tasks=k)
        ablation("abl-layers", layers=[3, 6, 10, 15, 20, 25, 30], shots_list=[5, 50])
        job("lora N", "abl-lora-nr-e4", lr_from="lora N", lr_row=["one LoRA"], epochs=4, light=True)
        job("lora 1", "abl-lora-r-e4", lr_from="lora 1", lr_row=["one LoRA"], epochs=4, light=True)
    worked(job, big)
    if big:
        jobs.append({"name": "wbase", "kind": "base", "seeds": [1, 2, 3], "front": [5, 8], "memory": True})
        jobs.append({"name": "gbase", "kind": "base", "seeds": [1, 2, 3], "front": [8], "guide": [8]})
    json.dump(jobs, sys.stdout, indent=0)


main(sys.argv[1])
