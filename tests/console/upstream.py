#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A bigger model's stand-in on a free port, which it prints: answers each chat with one sentence, as a stream."""
import http.server, json


class Upstream(http.server.BaseHTTPRequestHandler):
    def log_message(self, *a):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for word in "Iron is Fe, from the Latin ferrum.".split():
            self.wfile.write(b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": word + " "}}]}).encode() + b"\n\n")
        self.wfile.write(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],'
                         b'"usage":{"prompt_tokens":20,"completion_tokens":9}}\n\ndata: [DONE]\n\n')


server = http.server.HTTPServer(("127.0.0.1", 0), Upstream)
print(server.server_port, flush=True)
server.serve_forever()
