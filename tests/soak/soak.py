#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Endurance of crayon serve: random requests, each answer checked against a cold run.

    tests/soak/soak.py --crayon build/crayon --seconds 1800 [--seed N] [--clients 6] [--out FILE]

A cold server (one thread, one lane, each request with a key of its own, so that nothing is cached) first
answers a catalogue of requests, with every version of two palettes. Then the server under test gets
requests of the catalogue from several clients at once, in random order, whole and streamed, and meanwhile
  - clients go away in the middle of a stream,
  - the palettes' files are replaced and SIGHUP has them read again,
  - chats are routed to an upstream that is slow, answers 5xx, cuts the reply, sends events that are not
    JSON, or closes at once; the one that is asked next has a certificate that nobody signed,
  - in the first half of the time the server is killed (kill -9) at random points and started again,
    or ended by SIGTERM; in the second half one process lives on and its memory is watched.
Fails when an answer differs, a request fails that had no reason to, a sent request is not in the ledger, a
process ends badly, or memory grows by more than 2 % (in runs of 300 s and more; not with --no-memory, for
sanitizers). Standard library only; the bad certificate needs openssl, without it that fault is left out and said.
"""
import argparse
import collections
import http.client
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WORDS = "sea ship harbour wind storm captain island map gold rope sail night star whale letter bread".split()
FAR = "the upstream says that Lisbon is sunny".split(" ")  # in pieces of one word
VERSIONS = 4
FAULTS = ["ok", "ok", "ok", "slow", "500", "cut", "malformed", "reset"]


DIES_WITH_US = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []  # a server that we start, however we end


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Upstream(threading.Thread):
    """Another server, by turns good and bad. tls: its certificate is bad, so nothing may ever come."""

    def __init__(self, seed, tls=None):
        super().__init__(daemon=True)
        self.rng, self.tls, self.seen, self.lock = random.Random(seed), tls, collections.Counter(), threading.Lock()
        self.s = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.s.getsockname()[1]

    def run(self):
        while True:
            c, _ = self.s.accept()
            threading.Thread(target=self.serve, args=(c,), daemon=True).start()

    def serve(self, c):
        try:
            c.settimeout(10)
            with c:
                if self.tls:
                    with self.tls.wrap_socket(c, server_side=True) as t:
                        if t.recv(1):
                            self.seen["through a bad certificate"] += 1
                    return
                self.answer(c)
        except OSError:
            pass

    def answer(self, c):
        got = b""
        while b"\r\n\r\n" not in got:
            more = c.recv(65536)
            if not more:
                return
            got += more
        head, body = got.split(b"\r\n\r\n", 1)
        length = next(int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length"))
        while len(body) < length:
            body += c.recv(65536)
        with self.lock:
            how = self.rng.choice(FAULTS)
            self.seen[how] += 1
        if how == "reset":
            return
        if how == "500":
            c.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            return
        if how == "slow":
            time.sleep(0.4)
        if not json.loads(body).get("stream"):
            text = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": " ".join(FAR)},
                                            "finish_reason": "stop"}]}).encode()
            if how == "malformed":
                text = text.replace(b"choices", b"choice\x01")
            c.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(text))
            c.sendall(text[:len(text) // 2] if how == "cut" else text)
            return
        c.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for i, word in enumerate(FAR):
            if i == 3 and how == "cut":
                return
            if i == 3 and how == "malformed":
                c.sendall(b"data: {\"choices\":[{\"delta\":{]\n\n")
            piece = json.dumps({"choices": [{"index": 0, "delta": {"content": (" " if i else "") + word}}]})
            c.sendall(b"data: " + piece.encode() + b"\n\n")
        c.sendall(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')


class Server:
    """crayon serve, started again on the same port."""

    def __init__(self, args, folder, name, more, env=None):
        self.port, self.log = free_port(), os.path.join(folder, name + ".log")
        self.command = [*DIES_WITH_US, args.crayon, "serve", "-m", args.model, "--alias", "m", "--port", str(self.port), "--ctx", "512",
                        "--pool", args.pool, "--palette", os.path.join(folder, name, "a.palette"), "--palette",
                        os.path.join(folder, name, "b.palette"), *more]
        self.env = os.environ | {"XDG_STATE_HOME": os.path.join(folder, name)} | (env or {})
        self.p = None

    def start(self):
        with open(self.log, "a") as f:
            self.p = subprocess.Popen(self.command, env=self.env, stdout=subprocess.DEVNULL, stderr=f)
        for _ in range(1200):
            try:
                c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                c.request("GET", "/health")
                if c.getresponse().status == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            if self.p.poll() is not None:
                sys.exit(f"the server ended with {self.p.returncode}, see {self.log}: {open(self.log).read()[-2000:]}")
            time.sleep(0.05)
        sys.exit("the server does not answer")

    def resident(self):
        with open(f"/proc/{self.p.pid}/status") as f:
            return next(int(line.split()[1]) / 1024 for line in f if line.startswith("VmRSS"))


# ---- requests ------------------------------------------------------------------------------------

def catalogue(rng):
    """(path, body, routable) of requests whose answers are always the same."""
    cases = []

    def words(n):
        return " ".join(rng.choice(WORDS) for _ in range(n))

    system = "You are a sailor. " + words(60)
    for i in range(14):
        messages = [{"role": "user", "content": f"Tell me about {words(3 + 4 * (i % 5))}"}]
        if i % 3 == 0:
            messages.insert(0, {"role": "system", "content": system})
        body = {"model": "m", "messages": messages, "max_tokens": 8 + 5 * (i % 6), "seed": i,
                "temperature": [0, 0.7, 1][i % 3]}
        if i % 4 == 1:
            body["top_k"] = 20
        if i % 4 == 2:
            body["top_p"] = 0.9
        cases.append(("/v1/chat/completions", body, True))
    for i in range(12):
        body = {"model": ["m", "m:a", "m:b"][i % 3], "prompt": f"{words(4)} {i % 4} and " + words(i * 9 % 50), "seed": i,
                "max_tokens": 10 + i, "temperature": i % 2}
        if i % 4 == 3:
            body |= {"n": 3}
        if i % 4 == 2:
            body |= {"logprobs": 2}
        if i % 6 == 1:
            body |= {"stop": ["the", "."]}
        if i % 6 == 5:
            body |= {"presence_penalty": 0.5, "frequency_penalty": 0.3}
        cases.append(("/v1/completions", body, False))
    cases.append(("/v1/completions", {"model": "m:a", "prompt": "Once upon a time there was", "max_tokens": 0, "echo": True,
                                      "logprobs": 1}, False))
    cases.append(("/v1/completions", {"model": "m", "prompt": [300 + i * 7 % 90 for i in range(280)], "max_tokens": 5}, False))
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "kind": {"enum": ["cat", "dog"]},
                                               "age": {"type": "integer", "minimum": 0, "maximum": 120}},
              "required": ["name", "kind", "age"], "additionalProperties": False}
    for i in range(4):
        cases.append(("/v1/chat/completions", {"model": ["m", "m:b"][i % 2], "messages": [{"role": "user", "content": f"Who? {i}"}],
                                               "max_tokens": 60, "seed": i, "response_format": {
                                                   "type": "json_schema", "json_schema": {"name": "p", "schema": schema}}}, False))
    tool = {"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]}}}
    cases.append(("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "Weather?"}], "max_tokens": 60,
                                           "tools": [tool], "tool_choice": "required", "seed": 2}, False))
    cases.append(("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": words(9)}], "max_tokens": 12,
                                           "crayon": {"examples": [{"question": "is it cold", "answer": "weather"}, {
                                               "question": "send money", "answer": "transfer"}]}}, True))
    cases.append(("/v1/messages", {"model": "m", "messages": [{"role": "user", "content": words(7)}], "max_tokens": 14}, True))
    cases.append(("/api/chat", {"model": "m", "messages": [{"role": "user", "content": words(8)}], "options": {"num_predict": 12}, "stream": False},
                  True))
    cases.append(("/v1/embeddings", {"model": "m:a", "input": [words(5), words(9)]}, False))
    return cases


def parts_of(path, events):
    """What must be equal, from the objects of a reply: texts by choice, how each ended, log-probabilities."""
    text, finish, more = collections.defaultdict(str), {}, collections.defaultdict(list)
    for e in events:
        for c in e.get("choices", []):
            i, m = c["index"], c.get("delta") or c.get("message") or c
            text[i] += m.get("content") or m.get("text") or ""
            for call in m.get("tool_calls") or []:
                text["call"] += (call["function"].get("name") or "") + call["function"].get("arguments", "")
            if c.get("finish_reason"):
                finish[i] = c["finish_reason"]
            for k, v in (c.get("logprobs") or {}).items():
                more[k] += v or []
        if path == "/v1/messages":
            text[0] += (e.get("delta") or {}).get("text", "") + "".join(x.get("text", "") for x in e.get("content") or [])
        if path == "/api/chat":
            text[0] += (e.get("message") or {}).get("content", "")
        if path == "/v1/embeddings":
            text = {i: d["embedding"] for i, d in enumerate(e["data"])}
    return [dict(text), finish, dict(more)]


class Reply:
    def __init__(self):
        self.status, self.events, self.id, self.route, self.error, self.ended = 0, [], None, None, None, False


def ask(port, path, body, key=None, cancel_after=None):
    """One request. cancel_after: goes away when so many events of the stream have come."""
    r = Reply()
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    headers = {"Content-Type": "application/json"} | ({"Authorization": "Bearer " + key} if key else {})
    c.request("POST", path, json.dumps(body), headers)
    h = c.getresponse()
    r.status, r.id, r.route = h.status, h.getheader("X-Request-Id"), h.getheader("X-Crayon-Route")
    if not body.get("stream"):
        r.events, r.ended = [json.loads(h.read())], True
    else:
        for line in h:
            line = line.strip()
            r.ended |= line == b"data: [DONE]" or line == b"event: message_stop" or b'"done":true' in line
            line = line.removeprefix(b"data: ")
            if line.startswith(b"{"):
                e = json.loads(line)
                r.events.append(e)
                r.error = e.get("error") or r.error
            if cancel_after is not None and len(r.events) > cancel_after:
                c.close()
                return None
    c.close()
    if r.status == 200 and r.events and "error" in r.events[0]:
        r.error = r.events[0]["error"]
    return r


def fingerprint(events):
    return next((e["system_fingerprint"] for e in events if "system_fingerprint" in e), "")


# ---- the run -------------------------------------------------------------------------------------

class Soak:
    def __init__(self, args, folder):
        self.args, self.folder, self.rng = args, folder, random.Random(args.seed)
        self.cases = catalogue(random.Random(7))
        self.want, self.counts, self.bad = {}, collections.Counter(), []
        self.lock = threading.Lock()
        self.epoch, self.down, self.stop = 0, False, False
        self.sent_ids = []

    def fail(self, msg):
        with self.lock:
            self.bad.append(msg)
            if len(self.bad) < 10:
                print("soak: " + msg, file=sys.stderr, flush=True)

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def make_palettes(self):
        with open(os.path.join(ROOT, "demo", "clinc150.jsonl")) as f:
            lines = f.readlines()
        for v in range(VERSIONS):
            examples = os.path.join(self.folder, "examples.jsonl")
            with open(examples, "w") as f:
                f.writelines(lines[v * 5:v * 5 + 5])
            subprocess.run([self.args.crayon, "blend", "-q", "-m", self.args.model, "--pool", self.args.pool, "--examples", examples,
                            "--level", "instant", "--held-out", "0", "-o", os.path.join(self.folder, f"{v}.palette")],
                           check=True, stdout=subprocess.DEVNULL)

    def put(self, where, name, version):
        """Replaces a palette in one step."""
        target = os.path.join(self.folder, where, name + ".palette")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copyfile(os.path.join(self.folder, f"{version}.palette"), target + ".new")
        os.replace(target + ".new", target)

    def cold(self):
        """What every request is answered with, for every version of its palette."""
        server = Server(self.args, self.folder, "cold", ["-q", "--parallel", "1", "-t", "1"])
        for v in range(VERSIONS):
            self.put("cold", "a", v)
            self.put("cold", "b", (v + 1) % VERSIONS)
            if v == 0:
                server.start()
            else:
                ask(server.port, "/v1/crayon/reload", {})  # SIGHUP would not say when it is done
            for i, (path, body, _) in enumerate(self.cases):
                if v > 0 and ":" not in body["model"]:
                    continue
                r = ask(server.port, path, body, key=f"cold-{v}-{i}")
                if r.status != 200:
                    sys.exit(f"cold {path} {body}: {r.status} {r.events}")
                if r.events[0].get("usage", {}).get("prompt_tokens_details", {}).get("cached_tokens"):
                    sys.exit("the cold server has cached something")
                self.want.setdefault(i, {})[fingerprint(r.events)] = parts_of(path, r.events)
        server.p.terminate()
        if server.p.wait() != 0:
            self.fail(f"the cold server ended with {server.p.returncode}")
        versions = sum(len(w) for w in self.want.values())
        if not all(len(self.want[i]) == VERSIONS for i, c in enumerate(self.cases) if ":" in c[1]["model"] and "embed" not in c[0]):
            sys.exit("the palettes' versions cannot be told apart")
        return versions

    def check(self, i, r):
        path, body, routable = self.cases[i]
        if r.status == 503:
            self.count("refused 503")
            return
        got = parts_of(path, r.events)
        if r.status != 200 or not (r.ended or r.error):
            self.fail(f"{path} case {i}: status {r.status}, ended {r.ended}: {str(r.events)[-300:]}")
        elif r.route == "server" and not r.error:
            self.count("by the upstream")
            with self.lock:
                self.sent_ids.append(r.id)
            if not routable or got[0].get(0) != " ".join(FAR):
                self.fail(f"case {i}: the upstream's answer is {got}")
        elif r.error:
            if not (routable and body_is_far(got) and "answer broke off" in r.error["message"]):
                self.fail(f"{path} case {i}: {r.error} after {got}")
            self.count("broken off by the upstream")
        else:
            self.count("compared")
            want = self.want[i].get(fingerprint(r.events))
            if "embeddings" in path:  # they tell no version
                want = next((w for w in self.want[i].values() if w == got), None)
            if want is None or json.loads(json.dumps(want)) != json.loads(json.dumps(got)):
                self.fail(f"{path} case {i}: want {str(want)[:600]}, got {str(got)[:600]}")

    def client(self, seed):
        rng = random.Random(seed)
        while not self.stop:
            i = rng.randrange(len(self.cases))
            path, body, _ = self.cases[i]
            body = dict(body)
            can_stream = not body.get("echo") and "embeddings" not in path and "completions" in path or "messages" in path
            cancel = None
            if can_stream and rng.random() < 0.5:
                body["stream"] = True
                cancel = rng.randrange(6) if rng.random() < 0.25 else None
            epoch, began = self.epoch, time.monotonic()
            if self.down:
                time.sleep(0.02)
                continue
            try:
                r = ask(self.server.port, path, body, key=rng.choice([None, "one", "two"]), cancel_after=cancel)
                if r is None:
                    self.count("cancelled")
                elif not (r.ended or r.error) and epoch != self.epoch:
                    self.count("lost to a restart")
                elif not (r.ended or r.error) and time.monotonic() - began > 25:
                    self.count("stopped for long")  # all of us, by somebody who measures: the server's idle time has passed
                else:
                    self.check(i, r)
            except (OSError, http.client.HTTPException, json.JSONDecodeError) as e:
                if self.down or epoch != self.epoch:
                    self.count("lost to a restart")
                else:
                    self.fail(f"{path} case {i}: {type(e).__name__} {e}")

    def restart(self, how):
        self.down = True
        self.epoch += 1
        p = self.server.p
        p.send_signal(how)
        code = p.wait()
        self.count("kill -9" if how == signal.SIGKILL else "SIGTERM")
        if code != (-9 if how == signal.SIGKILL else 0):
            self.fail(f"the server ended with {code}: {open(self.server.log).read()[-1500:]}")
        self.start()
        self.epoch += 1
        self.down = False

    def start(self):
        """Every lane touches all its memory, so that what grows later is growth."""
        self.server.start()
        ask(self.server.port, "/v1/completions", {"model": "m", "prompt": [300 + i % 90 for i in range(510)], "max_tokens": 1, "n": 6})

    def bad_certificate(self):
        key, cert = os.path.join(self.folder, "key.pem"), os.path.join(self.folder, "cert.pem")
        if not shutil.which("openssl"):
            print("soak: openssl is not installed: no bad certificate", file=sys.stderr)
            return None
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
                        "-subj", "/CN=localhost"], check=True, stderr=subprocess.DEVNULL)
        c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        c.load_cert_chain(cert, key)
        return c

    def run(self):
        began = time.monotonic()
        self.make_palettes()
        versions = self.cold()
        tls, upstreams = self.bad_certificate(), [Upstream(self.args.seed)]
        more = ["--parallel", "6", "--queue", "32", "--rule", "random", "--budget", "0.5", "--upstream-timeout", "5", "--upstream",
                f"http://127.0.0.1:{upstreams[0].port}", "--upstream-model", "big"]
        if tls:
            upstreams.append(Upstream(0, tls))
            more += ["--upstream", f"https://localhost:{upstreams[1].port}"]
        for u in upstreams:
            u.start()
        for name in "ab":
            self.put("live", name, 0)
        self.server = Server(self.args, self.folder, "live", ["-q", *more])
        self.start()
        clients = [threading.Thread(target=self.client, args=(self.args.seed * 1000 + k,)) for k in range(self.args.clients)]
        for c in clients:
            c.start()
        start = time.monotonic()
        memory, next_kill = [], start + 1 + self.rng.random() * 2
        while (now := time.monotonic()) - start < self.args.seconds and len(self.bad) < 20:
            if now - start < self.args.seconds / 2 and now > next_kill:
                self.restart(signal.SIGKILL if self.rng.random() < 0.7 else signal.SIGTERM)
                next_kill = time.monotonic() + self.rng.random() * max(4, self.args.seconds / 40)
            elif self.rng.random() < 0.3:
                self.put("live", self.rng.choice("ab"), self.rng.randrange(VERSIONS))
                self.server.p.send_signal(signal.SIGHUP)
                self.count("palette changes")
            if now - start > self.args.seconds * 0.6:
                memory.append(self.server.resident())
            time.sleep(0.1 + self.rng.random() * 0.4)
        self.stop = True
        for c in clients:
            c.join()
        self.server.p.terminate()
        if self.server.p.wait() != 0:
            self.fail(f"the server ended with {self.server.p.returncode}: {open(self.server.log).read()[-1500:]}")
        self.ledger(upstreams)
        third = max(1, len(memory) // 3)
        early, late = sum(memory[:third]) / third, sum(memory[-third:]) / third
        if not self.args.no_memory and self.args.seconds >= 300 and late > early * 1.02:
            self.fail(f"memory grows: {early:.1f} MiB, later {late:.1f} MiB")
        result = {"seconds": self.args.seconds, "catalogue": len(self.cases), "cold_answers": versions, **dict(sorted(self.counts.items())),
                  "upstream": dict(upstreams[0].seen), "mib_early": round(early, 1), "mib_late": round(late, 1),
                  "memory_percent": round((late / early - 1) * 100, 2), "failures": len(self.bad),
                  "all_seconds": round(time.monotonic() - began)}
        return result

    def ledger(self, upstreams):
        """Every request that reached the upstream is in the ledger, though the server was killed."""
        out = subprocess.run([self.args.crayon, "ledger", "-q", "--export", "jsonl"], env=self.server.env, check=True,
                             stdout=subprocess.PIPE).stdout
        rows = [json.loads(x) for x in out.splitlines()]
        good = {r["request_id"] for r in rows if r["status"] == "ok"}
        lost = [i for i in self.sent_ids if i not in good]
        if lost:
            self.fail(f"{len(lost)} answers of the upstream are not in the ledger as ok: {lost[:3]}")
        mine = [r for r in rows if f":{upstreams[0].port}" in r["destination"]]
        tries, pending = sum(r["tries"] or 0 for r in mine), sum(r["status"] == "pending" for r in mine)
        seen = sum(upstreams[0].seen.values())
        self.counts["ledger rows"], self.counts["ledger rows pending"] = len(rows), pending
        if seen > tries + 3 * pending:
            self.fail(f"the upstream got {seen} requests, the ledger tells of {tries} and {pending} that never ended")
        if len(upstreams) > 1 and upstreams[1].seen:
            self.fail("a request went through a bad certificate")
        if pending > (self.counts["kill -9"] + 1) * self.args.clients:
            self.fail(f"{pending} rows are pending after {self.counts['kill -9']} kills")


def body_is_far(got):
    return " ".join(FAR).startswith(got[0].get(0, ""))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--crayon", default=os.path.join(ROOT, "build", "crayon"))
    p.add_argument("--model", default=os.path.join(ROOT, "models", "crayon-15m-q8_0.gguf"))
    p.add_argument("--pool", default=os.path.join(ROOT, "models", "crayon-15m-pool.gguf"))
    p.add_argument("--seconds", type=float, default=15)
    p.add_argument("--clients", type=int, default=6)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--no-memory", action="store_true")
    p.add_argument("--out")
    args = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="crayon-soak-") as folder:
        soak = Soak(args, folder)
        result = soak.run()
    print(json.dumps(result, indent=1))
    if args.out:
        with open(args.out, "w") as f:
            f.write(json.dumps(result, indent=1) + "\n")
    return 1 if soak.bad else 0


sys.exit(main())
