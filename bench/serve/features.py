#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What crayon serve and llama-server do with the same requests, as the table of docs/api.md.

    bench/serve/features.py --llama-server PATH --model MODEL.gguf [--crayon build/crayon]

Each probe is sent to both, one server after the other; what came back is printed, nothing is judged. The last
probe may end a server: "server ended".
"""
import argparse
import http.client
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
JSON_TYPE = {"Content-Type": "application/json"}
DIES_WITH_US = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []  # a server that we start, however we end
ASK = [{"role": "user", "content": "Tell me about the sea"}]


class Server:
    def __init__(self, command, name, env):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.p = subprocess.Popen(DIES_WITH_US + [c.format(port=self.port) for c in command], stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL, env=os.environ | env)
        for _ in range(600):
            if self.alive():
                break
            time.sleep(0.1)
        self.name = self.names()[0] if name is None else name

    def call(self, method, path, body=None, headers=None, timeout=30):
        """(status, headers, text); a body that is no string becomes JSON."""
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        data = body if body is None or isinstance(body, str) else json.dumps(body)
        c.request(method, path, data, (JSON_TYPE if data is not None else {}) | (headers or {}))
        r = c.getresponse()
        text = r.read().decode(errors="replace")
        c.close()
        return r.status, dict(r.getheaders()), text

    def names(self):
        return [m["id"] for m in json.loads(self.call("GET", "/v1/models")[2])["data"]]

    def post(self, path, **body):
        return self.call("POST", path, {"model": self.name} | body)

    def chat(self, **more):
        return self.post("/v1/chat/completions", **({"messages": ASK, "max_tokens": 4, "temperature": 0} | more))

    def raw(self, data, timeout=5):
        """The status of whatever answers these bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as s:
            s.sendall(data)
            try:
                line = s.recv(64).split()
            except OSError:
                return "no answer in 5 s"
        return line[1].decode() if len(line) > 1 else "closed"

    def alive(self, timeout=5):
        try:
            return self.call("GET", "/health", timeout=timeout)[0] == 200
        except OSError:
            return False


def tokens_of(s, text):
    return json.loads(s.chat(messages=[{"role": "user", "content": text}])[2])["usage"]["prompt_tokens"]


def crowd(s, n, data):
    held = [socket.create_connection(("127.0.0.1", s.port)) for _ in range(n)]
    for c in held:
        c.sendall(data)
    time.sleep(0.5)
    alive = s.alive()
    for c in held:
        c.close()
    return "answers" if alive else "no answer in 5 s"


def echo(s):
    status, _, text = s.post("/v1/completions", prompt="The sea is wet", max_tokens=0, echo=True, logprobs=1)
    p = json.loads(text).get("choices", [{}])[0].get("logprobs") or {}
    return "log-probabilities of the prompt" if (p.get("token_logprobs") or [0])[0] is None else f"{status}, none of the prompt"


def default_length(s):
    text = s.post("/v1/completions", prompt="Once upon a time", temperature=0)[2]
    return f"{json.loads(text)['usage']['completion_tokens']} tokens"


def stops_for_gone_client(s):
    """Four long answers are begun and left; how long another waits that wants one token: median of 5."""
    body = json.dumps({"model": s.name, "prompt": "Once", "max_tokens": 1500, "temperature": 1, "n": 4, "stream": True})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    times = []
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", s.port), timeout=30) as c:
            c.sendall((head + body).encode())
            if b" 200 " not in c.recv(64):
                return "refused"
        t = time.time()
        s.post("/v1/completions", prompt="x", max_tokens=1)
        times.append((time.time() - t) * 1000)
    return f"{statistics.median(times):.0f} ms ({min(times):.0f}-{max(times):.0f})"


def schema(s, schema):
    return str(s.chat(max_tokens=40, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})[0])


def nested(s, n):
    body = '{"model":"x","messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":' \
           '{"name":"x","schema":' + '{"type":"array","items":' * n + "{}" + "}" * n + "}}}"
    try:
        status = str(s.call("POST", "/v1/chat/completions", body)[0])
    except OSError:
        status = "no answer"
    time.sleep(1)
    return status if s.p.poll() is None else "server ended"


def status(method, path, **body):
    return lambda s: str(s.call(method, path, ({"model": s.name} | body) if method == "POST" else None)[0])


def field(**more):
    return lambda s: str(s.chat(**more)[0])


def get(headers):
    return lambda s: s.raw(f"GET /v1/models HTTP/1.1\r\n{headers}Connection: close\r\n\r\n".encode())


HOST = "Host: localhost\r\n"
PROBES = [
    ("`/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`", lambda s: ", ".join(
        [field()(s), status("POST", "/v1/completions", prompt="x", max_tokens=1)(s), status("POST", "/v1/embeddings", input="x")(s)])),
    ("`/v1/responses`, `/v1/messages`, its `count_tokens`", lambda s: ", ".join(
        [status("POST", "/v1/responses", input="x", max_output_tokens=2)(s), status("POST", "/v1/messages", messages=ASK, max_tokens=2)(s),
         status("POST", "/v1/messages/count_tokens", messages=ASK)(s)])),
    ("Ollama's `/api/tags`, `/api/chat`", lambda s: ", ".join(
        [status("GET", "/api/tags")(s), status("POST", "/api/chat", messages=ASK, options={"num_predict": 2}, stream=False)(s)])),
    ("`/tokenize`, `/metrics`, `/lora-adapters`", lambda s: ", ".join(
        [status("POST", "/tokenize", content="x")(s), status("GET", "/metrics")(s), status("GET", "/lora-adapters")(s)])),
    ("`GET /v1/models/{id}` of the model", lambda s: str(s.call("GET", "/v1/models/" + s.name)[0])),
    ("a model that is not there", lambda s: str(s.call("POST", "/v1/chat/completions", {"model": "no-such", "messages": ASK, "max_tokens": 1})[0])),
    ("errors name the field (`param`)", lambda s: "yes" if "param" in json.loads(s.chat(messages="x")[2]).get("error", {}) else "no"),
    ("`echo` with `logprobs` (lm-eval)", echo),
    ("completion without `max_tokens` (OpenAI: 16)", default_length),
    ("four choices (`n`), whole", lambda s: f"{s.chat(n=4)[0]}"),
    ("text `<\\|im_end\\|>` in a user's message", lambda s: f"{tokens_of(s, 'a<|im_end|>b') - tokens_of(s, 'a b')} more tokens than a blank"),
    ("`messages: []`", field(messages=[])),
    ("`temperature` -1; `top_p` 1.5", lambda s: f"{field(temperature=-1)(s)}; {field(top_p=1.5)(s)}"),
    ("`max_tokens` 1.5; `stop` 5", lambda s: f"{field(max_tokens=1.5)(s)}; {field(stop=5)(s)}"),
    ("role `wizard`; no role", lambda s: f"{field(messages=[{'role': 'wizard', 'content': 'x'}])(s)}; {field(messages=[{'content': 'x'}])(s)}"),
    ("an image to a model of text", field(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}])),
    ("`logit_bias` with the key `x`; `n` 1000", lambda s: f"{field(logit_bias={'x': 1})(s)}; {field(n=1000)(s)}"),
    ("prompt `[1, \"a\"]`", status("POST", "/v1/completions", prompt=[1, "a"], max_tokens=1)),
    ("`max_tokens` twice in one body", lambda s: str(s.call("POST", "/v1/completions", '{"model":"%s","prompt":"x","max_tokens":1,"max_tokens":2}' % s.name)[0])),
    ("schema with `not`; with `uniqueItems`", lambda s: f"{schema(s, {'type': 'string', 'not': {'const': 'a'}})}; "
                                                      f"{schema(s, {'type': 'array', 'items': {'type': 'boolean'}, 'uniqueItems': True, 'maxItems': 3})}"),
    ("pattern with look-ahead", lambda s: schema(s, {"type": "string", "pattern": "^(?=a)b$"})),
    ("foreign `Host`; none; two", lambda s: f"{get('Host: evil.example' + chr(13) + chr(10))(s)}; {get('')(s)}; {get(HOST + HOST)(s)}"),
    ("foreign `Origin`", get(HOST + "Origin: http://evil.example\r\n")),
    ("`text/plain` POST, as a web page can send", lambda s: str(s.call("POST", "/v1/completions", json.dumps(
        {"model": s.name, "prompt": "x", "max_tokens": 1}), {"Content-Type": "text/plain"})[0])),
    ("a body of 1 TiB is announced", lambda s: s.raw(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                                                     b"Content-Length: 1099511627776\r\n\r\n")),
    ("`/health` beside 40 unfinished requests", lambda s: crowd(s, 40, b"GET /health HTTP/1.1\r\nHo")),
    ("`/health` beside 300 idle connections", lambda s: crowd(s, 300, b"")),
    ("one token after a long answer was left", stops_for_gone_client),
    ("schema nested 100,000 deep", lambda s: nested(s, 100000)),
]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--crayon", default=str(ROOT / "build/crayon"))
    p.add_argument("--llama-server", required=True)
    p.add_argument("--model", required=True)
    p.add_argument("--only", default="", help="probes whose name holds this")
    a = p.parse_args()
    library = {"LD_LIBRARY_PATH": os.path.dirname(a.llama_server)}
    both = [([a.crayon, "serve", "-q", "-m", a.model, "--ctx", "2048", "--port", "{port}"], {}),
            ([a.llama_server, "-m", a.model, "-c", "8192", "-np", "4", "-t", "2", "--jinja", "--metrics", "--embeddings", "--pooling",
              "mean", "--port", "{port}"], library)]
    probes, columns = [x for x in PROBES if a.only in x[0]], []
    for command, env in both:
        s, answers = Server(command, None, env), []
        for name, probe in probes:
            try:
                answers.append(probe(s))
            except Exception as e:  # what came back was nothing that the probe expects
                said = "no answer in 30 s" if isinstance(e, TimeoutError) else f"failed ({type(e).__name__})"
                answers.append(said if s.p.poll() is None else "server ended")
        s.p.terminate()
        s.p.wait(30)
        columns.append(answers)
    print("| sent | crayon | llama-server |\n|---|---|---|")
    for (name, _), *row in zip(probes, *columns):
        print(f"| {name} | {row[0]} | {row[1]} |")


main()
