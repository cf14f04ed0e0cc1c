# Two servers behind HAProxy: both are restarted in turn under load, and no request fails.
command -v haproxy > /dev/null || { echo "skip: haproxy is not installed"; exit 77; }
command -v curl > /dev/null || { echo "skip: curl is not installed"; exit 77; }
pids=
trap 'kill $pids 2> /dev/null' EXIT
serve() { # NAME PORT
    "$CRAYON" serve -m "$MODELS/crayon-15m-q8_0.gguf" --alias m -t 1 --port "$2" > "$1.out" 2> "$1.err" &
    eval "$1=$!"
    pids="$pids $!"
    for _ in $(seq 200); do [ -s "$1.out" ] && return; sleep 0.05; done
    echo "$1 did not start"; exit 1
}
serve a 0; serve b 0
port_a=$(grep -oE ':[0-9]+/' a.out | tr -d ':/') port_b=$(grep -oE ':[0-9]+/' b.out | tr -d ':/')
port=$((port_a > 40000 ? port_a - 3000 : port_a + 3000))
cat > haproxy.cfg <<END
global
    maxconn 200
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
frontend llm
    bind 127.0.0.1:$port
    option http-buffer-request
    default_backend crayon
backend crayon
    balance leastconn
    option httpchk
    http-check send meth GET uri /health ver HTTP/1.1 hdr Host 127.0.0.1
    http-check expect status 200
    option redispatch 1
    retries 3
    retry-on conn-failure empty-response 503
    default-server check inter 200ms fall 1 rise 1
    server a 127.0.0.1:$port_a
    server b 127.0.0.1:$port_b
END
haproxy -db -f haproxy.cfg > haproxy.log 2>&1 &
pids="$pids $!"
for _ in $(seq 100); do curl -sf "http://127.0.0.1:$port/health" > /dev/null && break; sleep 0.1; done
client() {
    while [ ! -f stop ]; do
        curl -s -o answer.$1 -w '%{http_code}\n' "http://127.0.0.1:$port/v1/chat/completions" -H 'Content-Type: application/json' \
            -d "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"client $1\"}],\"max_tokens\":12,\"stream\":$2}" >> codes
        grep -q '"finish_reason": *"\(length\|stop\)"' answer.$1 || { echo "client $1: a broken answer"; cat answer.$1; } >> broken
    done
}
clients=
for i in 1 2 3; do client $i false & clients="$clients $!"; done
client 4 true & clients="$clients $!"
sleep 1
for name in a b a; do
    kill "${!name}"
    wait "${!name}"
    echo "$name ended with $?"
    p=port_$name
    serve $name "${!p}"
    sleep 1.2
done
touch stop
wait $clients
echo "codes: $(sort -u codes | tr '\n' ' ')"
[ "$(wc -l < codes)" -gt 20 ] && echo "more than 20 requests"
[ ! -f broken ] || cat broken
