# crayon pull against a server that we write here: whole, cut and resumed, changed meanwhile, wrong hash, too large,
# redirects, names of an index, two at once.
command -v python3 > /dev/null || { echo "skip: python3 is not installed"; exit 77; }
head -c 3000000 "$MODELS/crayon-15m-q8_0.gguf" > data
sha=$(sha256sum data | cut -d' ' -f1)
cat > server.py <<'END'
import http.server, os, re, sys, threading
data = open("data", "rb").read()
log = open("requests", "a", buffering=1)
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def do_GET(self):
        log.write(self.path + " range=" + self.headers.get("Range", "-") + " if=" + self.headers.get("If-Range", "-")
                  + " auth=" + self.headers.get("Authorization", "-") + "\n")
        p, body, status, tag = self.path, data, 200, '"v1"'
        if p.startswith("/missing"): return self.send_error(404)
        if p.startswith("/to-file"): return self.go("file:///etc/passwd")
        if p.startswith("/to-meta"): return self.go("http://169.254.169.254/latest")
        if p.startswith("/loop"): return self.go("/loop")
        if p.startswith("/away"): return self.go("/model.gguf")
        if p.startswith("/index"): body = ("# names\nsmall http://127.0.0.1:%d/model.gguf %s\nwrong http://127.0.0.1:%d/model.gguf %s\n"
            % (port, sys.argv[1], port, "0" * 64)).encode(); tag = None
        if p.startswith("/changed"): tag = '"v2"'
        start = 0
        m = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if m and tag and self.headers.get("If-Range") == tag:
            start, status = int(m[1]), 206
            if start >= len(body): return self.send_error(416)
        self.send_response(status)
        if tag: self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(body) - start))
        if status == 206: self.send_header("Content-Range", "bytes %d-%d/%d" % (start, len(body) - 1, len(body)))
        self.end_headers()
        if p.startswith("/cut") and start == 0:
            self.wfile.write(body[:1000000]); self.wfile.flush(); self.connection.shutdown(2); return
        try: self.wfile.write(body[start:])
        except OSError: pass
    def go(self, where):
        self.send_response(302); self.send_header("Location", where); self.send_header("Content-Length", "0"); self.end_headers()
s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), H)
port = s.server_port
open("port.tmp", "w").write(str(port)); os.rename("port.tmp", "port")
s.serve_forever()
END
python3 server.py "$sha" > server.log 2>&1 &
server=$!
trap 'kill $server 2> /dev/null' EXIT
for _ in $(seq 100); do [ -f port ] && break; sleep 0.1; done
url=http://127.0.0.1:$(cat port)
models=$HOME/.local/share/crayon/models
pull() { "$CRAYON" pull "$@" > out 2> err; echo "exit $?: $(sed "s,$HOME,HOME,; s/:[0-9]\{4,5\}/:PORT/g; s/$sha/SHA/g" out err | tr '\n' '|' | sed 's/|$//')"; }

echo "whole:"; CRAYON_API_KEY=CANARY-1 pull "$url/model.gguf" --sha256 "$sha"
cmp data "$models/model.gguf" && ls "$models"
echo "again:"; pull "$url/model.gguf"
grep -c CANARY requests
echo "cut, then resumed:"
pull "$url/cut.gguf" --sha256 "$sha"; ls "$models"
pull "$url/cut.gguf" --sha256 "$sha"; cmp data "$models/cut.gguf" && ls "$models"
grep '^/cut' requests
echo "changed meanwhile: from the beginning:"
head -c 5000 /dev/zero > "$models/changed.gguf.part"; printf '"v1"' > "$models/changed.gguf.part.tag"
pull "$url/changed.gguf" --sha256 "$sha"; cmp data "$models/changed.gguf"
echo "a part of nobody knows what:"
head -c 5000 /dev/zero > "$models/other.gguf.part"
pull "$url/other.gguf" --sha256 "$sha"; cmp data "$models/other.gguf"
echo "wrong hash:"; pull "$url/bad.gguf" --sha256 "$(printf '%064d' 7)"; ls "$models" | grep bad
echo "too large:"; pull "$url/large.gguf" --max-bytes 1M; ls "$models" | grep large
echo "not there:"; pull "$url/missing.gguf"; ls "$models" | grep missing
echo "redirects:"
pull "$url/away.gguf" --sha256 "$sha"
pull "$url/loop.gguf"
pull "$url/to-file.gguf"
pull "$url/to-meta.gguf"
echo "names:"
pull small
pull small --index "$url/index" --force
pull wrong --index "$url/index" --force
pull nobody --index "$url/index"
printf 'small only-two\n' > list; pull small --index list
echo "refused:"
pull "http://192.0.2.7/x.gguf"
pull "ftp://127.0.0.1/x.gguf"
pull "$url/.hidden"
pull "$url/..%2f..%2fx"
pull "$url/"
echo "two at once:"
flock "$models/two.gguf.part" sleep 2 & sleep 0.3
pull "$url/two.gguf"
wait %2 2> /dev/null
ls "$models"
