# The whole way of routing, with a second crayon as the server: calibrate a palette, explain, send what
# is out of scope, refuse what may not leave, read the receipt.
fail() { echo "FAILED: $1"; cat err; exit 1; }
model=$MODELS/crayon-15m-q8_0.gguf
server=
trap '[ -z "$server" ] || kill $server' EXIT
start() { # OPTIONS: serves on a free port, sets $url and $server
    rm -f url # of the server before
    "$CRAYON" serve -m "$model" --alias big --port 0 "$@" > url 2> serve.err &
    server=$!
    for _ in $(seq 1000); do [ -s url ] && break; sleep 0.05; done
    url=$(cat url)
}
finish() { kill $server; wait $server; echo "server ended with $?"; server=; }

for i in $(seq 1 40); do
    echo "{\"task\":\"music\",\"question\":\"Play song number $i by band $((i * 7 % 40)).\",\"answer\":\"PlayMusic\"}"
done > music.train.jsonl
for i in $(seq 1 40); do
    echo "{\"task\":\"weather\",\"question\":\"Will it rain in city $i on day $((i * 3 % 31))?\",\"answer\":\"GetWeather\"}"
done > weather.train.jsonl
"$CRAYON" pool train -q -m "$model" --tasks . --n 2 --rank 4 --steps 6 --step-tokens 200 -o pool.gguf 2> err || fail train
head -n 12 music.train.jsonl > mine.jsonl
tail -n 28 music.train.jsonl > more.jsonl
"$CRAYON" blend -q -m "$model" --pool pool.gguf --examples mine.jsonl --held-out 0 --level measured -o mine.palette > out 2> err || fail blend

echo "before a calibration: $("$CRAYON" run -m "$model" --palette mine.palette -p x --upstream http://127.0.0.1:1 --upstream-model big 2>&1 | cut -c 1-70)"
"$CRAYON" route calibrate -q -m "$model" --palette mine.palette --examples more.jsonl --out-of-scope weather.train.jsonl \
    -n 8 --svg chart.svg > table 2> err || fail calibrate
grep -E '^(28 examples|the smallest|device right|40 questions)' table | sed -E 's/device right.*server/device right N %, server/; s/AUROC (1.000|0.9[5-9]).*/AUROC above 0.95/'
grep -c polyline chart.svg
"$CRAYON" info mine.palette | grep -c calibration

explain() { "$CRAYON" route explain -q -m "$model" --palette mine.palette --rule scope --budget 0.1 -n 8 -p "$1" | sed -n 's/^\* //p' | sed -E 's/ +/ /g; s/-?[0-9]+\.[0-9]+/N/g'; }
explain "Play song number 77 by band 8."
explain "What is the chemical symbol of iron?"

start
run() { "$CRAYON" run -m "$model" --palette mine.palette -n 8 --rule scope --budget 0.1 --yes --upstream "$url" --upstream-model "${UP:-big}" --json "$@" > out 2> err; echo "exit $?"; sed -n 's/^ *"\(route\|why\)": \(.*\)/\1 \2/p' out | sed -E 's/-?[0-9]+\.[0-9]+/N/g; s/127.0.0.1:[0-9]+/HOST/g'; }
run -p "Play song number 77 by band 8."
run -p "What is the chemical symbol of iron?"
grep -c "would leave this device" err
left=$(sed -n 's/.*"left_device_bytes": \([0-9]*\).*/\1/p' out)
"$CRAYON" ledger --json > ledger.json
grep -cE "\"bytes_out\": $left," ledger.json
grep -E '"(ok|failed|pending|rows|model|status)"' ledger.json | tr -d ' '
run -p "What is the chemical symbol of iron?" --offline
UP=nobody run -p "What is the chemical symbol of iron?"
"$CRAYON" route calibrate -q -m "$model" --palette mine.palette --examples more.jsonl --limit 6 -n 8 --upstream "$url" --upstream-model big > out 2> err
echo "calibrate without a yes: exit $?: $(sed -E 's/[0-9]+ bytes/N bytes/' err)"
"$CRAYON" route calibrate -q -m "$model" --palette mine.palette --examples more.jsonl --limit 6 -n 8 --upstream "$url" --upstream-model big --yes --json > out 2> err || fail "calibrate with a server"
grep -E '"(server_asked|n)":' out
"$CRAYON" ledger --json --limit 1 | grep -E '"rows"|"ok"' | tr -d ' '
finish

echo "a server with a key, offline by the kernel's word:"
echo secret-1 > key && echo wrong-1 > other
start --key-file key --offline
run -p "What is the chemical symbol of iron?" --upstream-key-file key
run -p "What is the chemical symbol of iron?" --upstream-key-file other
grep -l "secret-1\|wrong-1" -r . "$HOME" | sort
finish
