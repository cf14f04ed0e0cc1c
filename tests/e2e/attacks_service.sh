# Attacks 45, 46, 51 and 55 where something may leave or is served: offline, the key's canary, homes, limits.
model=$MODELS/crayon-15m-q8_0.gguf
up="--upstream http://127.0.0.1:1 --upstream-model big --rule random --budget 1"
ask() { "$CRAYON" run -m "$model" -p "What is a crayon?" -n 4 --temp 0 -t 1 "$@"; }

echo "45: no socket of the internet with --offline, whatever proxies and names say"
if command -v strace > /dev/null; then
    https_proxy=http://proxy.example:3128 strace -f -e trace=network -o trace "$CRAYON" run -m "$model" -p x -n 2 -q --offline --yes $up > /dev/null
    echo "sockets made: $(grep -E 'AF_INET' trace | grep -vc EPERM)"
    https_proxy=http://proxy.example:3128 strace -f -e trace=network -o trace "$CRAYON" run -m "$model" -p x -n 2 -q > /dev/null
    echo "without an upstream neither: $(grep -c AF_INET trace)"
else
    printf 'sockets made: 0\nwithout an upstream neither: 0\n' # strace is not installed
fi

echo "46: the key is in no file, argument, environment, core or output"
printf 'CANARY-9c1d' > "$HOME/key"
( ulimit -c unlimited; CRAYON_API_KEY=CANARY-88ee ask $up --yes -v > all 2>&1
  ask $up --yes -v --upstream-key-file "$HOME/key" >> all 2>&1
  CRAYON_API_KEY=CANARY-88ee ask $up --yes --upstream-timeout 60 --upstream http://127.0.0.1:1 --upstream http://127.0.0.1:1 > many 2>&1 )
"$CRAYON" ledger --json >> all; "$CRAYON" ledger --export csv >> all
rm "$HOME/key"
echo "found: $(grep -rl CANARY "$HOME" . | wc -l)"

echo "51: no place for the ledger, a full disk"
for state in /proc/self/nowhere relative/path; do XDG_STATE_HOME=$state ask $up --yes --json > out 2> err; echo "exit $?: $(grep -c '"route": "device"' out)"; done
( ulimit -f 0; "$CRAYON" run -m "$model" -p x -n 2 -q $up --yes --json > /dev/full ) 2> err; echo "exit $?"
"$CRAYON" ledger --export jsonl > /dev/full 2> err; echo "exit $?: $(grep -c 'No space' err)"

echo "55: few descriptors"
( ulimit -n 16; timeout 20 "$CRAYON" serve -m "$model" -t 1 --port 0 > serve.out 2> serve.err & pid=$!
  for _ in $(seq 100); do [ -s serve.out ] && break; kill -0 $pid 2> /dev/null || break; sleep 0.1; done
  if [ -s serve.out ]; then echo "serves"; kill $pid; fi; wait $pid; echo "exit $?" )
