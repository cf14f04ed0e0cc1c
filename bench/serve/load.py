#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Load on crayon serve beside llama-server: N streaming clients each, in slices that alternate.

    bench/serve/load.py --llama-server PATH --load models/crayon-15m-q8_0.gguf:64 --load SMOLLM2.gguf:16 \\
        --seconds 300 --slice 30 --out bench/results/serve-load.json

For each --load FILE:CLIENTS both servers are started with as many lanes as clients and the same context,
then loaded in turn, a slice each, until each has had its seconds; the one that is not measured is stopped
(SIGSTOP), so that it takes no time from the other. The clients are bench/serve/client.c, one epoll thread:
the same prompts and lengths for both, that differ after their first words. Writes all numbers as JSON and prints a table:
tokens/s in sum (median of the slices and spread), time to the first token over all requests, errors,
resident memory after the first slice against the most and the least after it, the share of a core that
the clients took, and the ratios. PEER_ARGS more arguments for llama-server, PEER_ENV "A=B C=D" for its
environment. The default is the best of one and two threads, a KV cache for each lane or one for all, and OpenMP that
spins or sleeps (OMP_WAIT_POLICY=passive), on two quiet cores.

    bench/serve/load.py --load models/crayon-15m-q8_0.gguf:16 --palettes 8 --pool models/crayon-15m-pool.gguf

compares crayon with itself: all clients with the base model, with one palette, with 8 of them in one batch.
"""
import argparse
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


DIES_WITH_US = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []  # a server that we start, however we end


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def processor():
    with open("/proc/cpuinfo") as f:
        return next((line.split(":")[1].strip() for line in f if line.startswith("model name")), platform.machine())


class Server:
    def __init__(self, name, command, env, port):
        self.name, self.port, self.slices, self.resident = name, port, [], []
        self.p = subprocess.Popen(DIES_WITH_US + command, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as r:
                    if r.status == 200:
                        break
            except OSError:
                time.sleep(0.1)
        else:
            self.p.kill()
            sys.exit(f"{name} does not answer")
        os.kill(self.p.pid, signal.SIGSTOP)

    def cpu(self):
        with open(f"/proc/{self.p.pid}/stat") as f:
            v = f.read().rsplit(")", 1)[1].split()
        return (int(v[11]) + int(v[12])) / os.sysconf("SC_CLK_TCK")

    def mib(self):
        with open(f"/proc/{self.p.pid}/status") as f:
            return next(int(line.split()[1]) / 1024 for line in f if line.startswith("VmRSS"))

    def slice(self, client, clients, seconds, seed, model="m"):
        os.kill(self.p.pid, signal.SIGCONT)
        before = self.cpu()
        out = subprocess.run([client, str(self.port), str(clients), str(seconds), str(seed), model], stdout=subprocess.PIPE,
                             check=True).stdout
        r = json.loads(out)
        r["server_cpu_s"] = round(self.cpu() - before, 2)
        self.resident.append(round(self.mib(), 1))
        os.kill(self.p.pid, signal.SIGSTOP)
        self.slices.append(r)

    def end(self):
        os.kill(self.p.pid, signal.SIGCONT)
        self.p.terminate()
        self.p.wait()

    def result(self):
        first = sorted(x for s in self.slices for x in s["first_ms"])
        rate = [s["tokens"] / s["seconds"] for s in self.slices]
        total = {k: sum(s[k] for s in self.slices) for k in ("requests", "refused", "errors", "cut", "tokens", "seconds")}
        early, late = self.resident[0], self.resident[1:] or self.resident
        return {"server": self.name, **total, "tokens_per_s": round(statistics.median(rate), 1),
                "tokens_per_s_min": round(min(rate), 1), "tokens_per_s_max": round(max(rate), 1),
                "first_ms_p50": first[len(first) // 2], "first_ms_p95": first[int(0.95 * (len(first) - 1))],
                "first_ms_max": first[-1], "resident_mib": self.resident,
                "resident_change_percent": round(max((x / early - 1) * 100 for x in late), 2),
                "resident_least_percent": round(min((x / early - 1) * 100 for x in late), 2),
                "client_core_share": round(sum(s["cpu_s"] for s in self.slices) / total["seconds"], 3),
                "server_cores": round(sum(s["server_cpu_s"] for s in self.slices) / total["seconds"], 2)}


def make_palettes(args, model, folder):
    """Blends from different examples; returns the files."""
    with open(os.path.join(ROOT, "demo", "clinc150.jsonl")) as f:
        lines = f.readlines()
    files = []
    for i in range(args.palettes):
        examples = os.path.join(folder, "examples.jsonl")
        files.append(os.path.join(folder, f"p{i}.palette"))
        with open(examples, "w") as f:
            f.writelines(lines[i * 4:i * 4 + 4])
        subprocess.run([args.crayon, "blend", "-q", "-m", model, "--pool", args.pool, "--examples", examples, "--level", "instant",
                        "--held-out", "0", "-o", files[-1]], check=True, stdout=subprocess.DEVNULL)
    return files


def load_palettes(args, client, model, clients, folder):
    """One server; its slices by what the clients ask for."""
    n, port, files = str(clients), free_port(), make_palettes(args, model, folder)
    s = Server("crayon", [args.crayon, "serve", "-q", "-m", model, "--alias", "m", "--port", str(port), "--parallel", n, "--ctx",
                          str(args.ctx), "--queue", n, *(x for f in files for x in ("--palette", f))], {}, port)
    ways = {"base": "m", "1 palette": "m:p0", f"{args.palettes} palettes": ",".join(f"m:p{i}" for i in range(args.palettes))}
    slices = {way: [] for way in ways}
    try:
        s.slice(client, clients, 0, 0)
        s.slices, s.resident = [], []
        for seed in range(1, 1 + max(1, args.seconds // args.slice)):
            for way, models in ways.items():
                s.slice(client, clients, args.slice, seed, models)
                slices[way].append(s.slices[-1])
        rows = []
        for way in ways:
            s.slices, s.name = slices[way], "crayon, " + way
            rows.append(s.result())
    finally:
        s.end()
    return {"model": os.path.basename(model), "clients": clients, "seconds": args.seconds, "slice": args.slice, "ctx": args.ctx,
            "servers": rows}


def load(args, client, model, clients):
    n, env = str(clients), dict(x.split("=", 1) for x in args.peer_env.split())
    port = free_port()
    servers = [Server("crayon", [args.crayon, "serve", "-q", "-m", model, "--alias", "m", "--port", str(port),
                                 "--parallel", n, "--ctx", str(args.ctx), "--queue", n], {}, port)]
    if args.llama_server:
        port = free_port()
        servers.append(Server("llama-server", [args.llama_server, "-m", model, "--port", str(port), "-np", n, "-c",
                                               str(args.ctx * clients), *args.peer_args.split()], env, port))
    try:
        for s in servers:
            s.slice(client, clients, 0, 0)
            s.slices, s.resident = [], []
        left, seed = args.seconds, 1
        while left > 0:
            for s in servers:
                s.slice(client, clients, min(args.slice, left), seed)
            left, seed = left - args.slice, seed + 1
        rows = [s.result() for s in servers]
    finally:
        for s in servers:
            s.end()
    out = {"model": os.path.basename(model), "clients": clients, "seconds": args.seconds, "slice": args.slice,
           "ctx": args.ctx, "peer_args": args.peer_args, "peer_env": args.peer_env, "servers": rows}
    if len(rows) > 1:
        out["throughput_ratio"] = round(rows[0]["tokens_per_s"] / rows[1]["tokens_per_s"], 2)
        out["first_p95_ratio"] = round(rows[0]["first_ms_p95"] / rows[1]["first_ms_p95"], 2)
    return out


def table(results):
    print("| model, clients | server | tokens/s (spread) | first token p50, p95, ms | requests, refused, errors | "
          "resident MiB (change) | clients' core |\n|---|---|---|---|---|---|---|")
    for r in results:
        for s in r["servers"]:
            print(f"| {r['model']}, {r['clients']} | {s['server']} | {s['tokens_per_s']:.0f} ({s['tokens_per_s_min']:.0f}-"
                  f"{s['tokens_per_s_max']:.0f}) | {s['first_ms_p50']:.0f}, {s['first_ms_p95']:.0f} | {s['requests']}, "
                  f"{s['refused']}, {s['errors'] + s['cut']} | {s['resident_mib'][-1]:.0f} "
                  f"({s['resident_least_percent']:+.1f} to {s['resident_change_percent']:+.1f} %) | "
                  f"{100 * s['client_core_share']:.0f} % |")
        if "throughput_ratio" in r:
            print(f"| | ratio | {r['throughput_ratio']} | p95 {r['first_p95_ratio']} | | | |")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--crayon", default=os.path.join(ROOT, "build", "crayon"))
    p.add_argument("--llama-server")
    p.add_argument("--load", action="append", required=True, metavar="FILE:CLIENTS")
    p.add_argument("--seconds", type=int, default=20, help="for each server and load")
    p.add_argument("--slice", type=int, default=10)
    p.add_argument("--ctx", type=int, default=320, help="of each lane")
    p.add_argument("--peer-args", default=os.environ.get("PEER_ARGS", "-t 2 -kvu"))
    p.add_argument("--peer-env", default=os.environ.get("PEER_ENV", ""))
    p.add_argument("--palettes", type=int, default=0, metavar="N")
    p.add_argument("--pool")
    p.add_argument("--out")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        client = os.path.join(d, "client")
        source = os.path.join(ROOT, "bench", "serve", "client.c")
        subprocess.run([os.environ.get("CC", "cc"), "-O2", "-D_GNU_SOURCE", "-o", client, source], check=True)
        results = []
        for model, clients in (one.rsplit(":", 1) for one in args.load):
            results.append(load_palettes(args, client, model, int(clients), d) if args.palettes
                           else load(args, client, model, int(clients)))
    if args.out:
        with open(args.out, "w") as f:
            json.dump({"date": time.strftime("%Y-%m-%d"), "processor": processor(), "cores": os.cpu_count(), "loads": results},
                      f, indent=1)
            f.write("\n")
    table(results)


main()
