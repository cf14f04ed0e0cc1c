#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Load on crayon serve beside llama-server: N streaming clients each, in the same run.

    bench/serve/load.py --model models/crayon-15m-q8_0.gguf --clients 64 --seconds 20 --llama-server PATH

Both servers get as many lanes as there are clients and the same context. Each client sends one prompt
after the other (its own words, so that no cache helps), reads the stream, and goes on. Prints for each
server: requests, errors, tokens/s in sum, p50 and p95 of the time to the first token, resident memory
at a third and at the end; then the ratios. Standard library only.
"""
import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import time

WORDS = "sea ship harbour wind storm captain island map gold rope sail night star whale letter bread".split()


async def one_request(port, rng, tokens, log, model):
    prompt = "Tell me a story about " + " ".join(rng.choice(WORDS) for _ in range(24))
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": prompt}], "stream": True,
                       "max_tokens": tokens, "temperature": 0.8, "top_k": 40, "seed": rng.randrange(1 << 30),
                       "cache_prompt": False}).encode()
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                 b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    status = (await reader.readline()).split()[1]
    first, n = None, 0
    async for line in reader:
        if b'"content":"' in line.replace(b'": "', b'":"') and b'"content":""' not in line.replace(b" ", b""):
            n += 1
            first = first or time.perf_counter() - start
    writer.close()
    log.append((status, first, n, time.perf_counter()))


async def client(port, i, until, tokens, log, model):
    rng = random.Random(i)
    while time.perf_counter() < until:
        try:
            await one_request(port, rng, tokens, log, model)
        except OSError as e:
            log.append((str(e), None, 0, time.perf_counter()))


def resident(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith("VmRSS"))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


async def wait_for(port):
    for _ in range(600):
        try:
            r, w = await asyncio.open_connection("127.0.0.1", port)
            w.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            ok = b" 200 " in await r.readline()
            w.close()
            if ok:
                return
        except OSError:
            pass
        await asyncio.sleep(0.1)
    raise SystemExit("the server did not start")


async def measure(name, command, port, args, model):
    # OpenMP's threads spin where others need the cores, above all the clients: the peer runs without.
    server = subprocess.Popen(command, env=os.environ | {"OMP_WAIT_POLICY": "passive"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        await wait_for(port)
        log, start = [], time.perf_counter()
        until = start + args.seconds
        jobs = [asyncio.create_task(client(port, i, until, args.tokens, log, model)) for i in range(args.clients)]
        await asyncio.sleep(args.seconds / 3)
        early = resident(server.pid)
        await asyncio.gather(*jobs)
        late = resident(server.pid)
    finally:
        server.terminate()
        server.wait()
    took = max(t for *_, t in log) - start
    good = [x for x in log if x[0] == b"200" and x[1]]
    errors = sum(x[0] != b"200" for x in log)  # an answer may also be empty
    times = sorted(x[1] * 1e3 for x in good)
    result = {"server": name, "clients": args.clients, "requests": len(log), "errors": errors,
              "tokens_per_s": sum(x[2] for x in good) / took, "first_ms_p50": statistics.median(times),
              "first_ms_p95": times[int(0.95 * (len(times) - 1))], "mib_early": early, "mib_late": late}
    print(json.dumps({k: round(v, 1) if isinstance(v, float) else v for k, v in result.items()}), flush=True)
    return result


async def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--crayon", default="build/crayon")
    p.add_argument("--llama-server")
    p.add_argument("--model", required=True)
    p.add_argument("--clients", type=int, default=64)
    p.add_argument("--seconds", type=float, default=20)
    p.add_argument("--tokens", type=int, default=32)
    p.add_argument("--ctx", type=int, default=256, help="of each lane")
    args = p.parse_args()
    n = str(args.clients)
    port = free_port()
    ours = await measure("crayon", [args.crayon, "serve", "-q", "-m", args.model, "--alias", "m", "--port", str(port),
                                    "--parallel", n, "--ctx", str(args.ctx), "--queue", n], port, args, "m")
    if args.llama_server:
        port = free_port()
        theirs = await measure("llama-server", [args.llama_server, "-m", args.model, "--port", str(port), "-np", n,
                                                "-c", str(args.ctx * args.clients), "-t", "2"], port, args, "m")
        print(f"throughput {ours['tokens_per_s'] / theirs['tokens_per_s']:.2f} x, p95 of the first token "
              f"{ours['first_ms_p95'] / theirs['first_ms_p95']:.2f} x")


asyncio.run(main())
