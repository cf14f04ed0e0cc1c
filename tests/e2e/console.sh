# The console page in headless Chromium: chat, fit, palettes, ledger; by keyboard, in light and dark, on a phone's screen.
# Pictures stay in the build folder: console/*.png.
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome) ||
    { echo "skip: chromium is not installed"; exit 77; }
command -v python3 > /dev/null || { echo "skip: python3 is not installed"; exit 77; }
python3 "$HERE/../console/upstream.py" > port 2> upstream.err &
upstream=$!
for _ in $(seq 100); do [ -s port ] && break; sleep 0.05; done
"$CRAYON" blend -q -m "$MODELS/crayon-15m-q8_0.gguf" --pool "$MODELS/crayon-15m-pool.gguf" --examples "$DATA/../demo/snips.jsonl" \
    --level instant -o assistant.palette > /dev/null
"$CRAYON" serve -m "$MODELS/crayon-15m-q8_0.gguf" --palette assistant.palette --pool "$MODELS/crayon-15m-pool.gguf" --port 0 -q \
    --upstream "http://127.0.0.1:$(cat port)" --upstream-model big --upstream-price 0.15,0.6 --rule random --budget 0 --mask personal > out 2> err &
server=$!
trap 'kill $server $upstream 2> /dev/null' EXIT
for _ in $(seq 200); do [ -s out ] && break; sleep 0.05; done
url=$(sed -n 's,/v1$,/,p' out)
head -n 40 "$HERE/../../demo/clinc150.jsonl" > examples.jsonl
timeout 280 python3 -u "$HERE/../console/console.py" "$chromium" "$url" examples.jsonl "$(dirname "$CRAYON")/console"
echo "exit $?"
