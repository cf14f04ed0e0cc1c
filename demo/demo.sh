#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The whole of crayon in two minutes, live: a small model is fitted to a task that its pool has never
# seen, then a question outside of that task goes to a bigger model, with the receipt.
# Everything runs on this machine; the network is not used. State goes to a temporary folder.
set -eu
cd "$(dirname "$0")/.."
crayon=${CRAYON:-build/crayon}
model=models/crayon-15m-q8_0.gguf
pool=models/crayon-15m-pool.gguf
big=${CRAYON_SMOLLM2:-${XDG_DATA_HOME:-$HOME/.local/share}/crayon/models/smollm2-135m-instruct-q4_1.gguf}
work=$(mktemp -d)
server=
stop() {
    [ -z "$server" ] || kill "$server" 2> /dev/null || true
    [ -z "$server" ] || wait "$server" 2> /dev/null || true
    rm -rf "$work"
}
trap stop EXIT
export XDG_STATE_HOME=$work/state

bold= plain=
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\033[1m' plain=$'\033[0m'
fi
say() { printf '\n%s%s%s\n' "$bold" "$1" "$plain"; }
show() {
    printf '$ crayon %s\n' "$*"
    "$crayon" "$@"
}

say "1. A model of 15 million parameters, and a pool of base adapters trained once on 86 tasks."
show info "$model" --quiet
show pool info "$pool" --quiet | head -n 16

say "2. Your examples: what people ask an assistant, and the name of what they want."
head -n 3 demo/clinc150.jsonl | cut -c 1-110

say "3. Blend: examples become weights, without training. The pool is not told which task this is."
show blend -m "$model" --pool "$pool" --examples demo/clinc150.jsonl --level measured \
    -o "$work/mine.palette"

say "4. The same requests to the base model and to the blend."
ask() { # REQUEST
    local base blend
    base=$("$crayon" run -m "$model" --raw -p "Question: $1
Answer:" -n 8 --temp 0 --stop $'\n' --quiet)
    blend=$("$crayon" run -m "$model" --palette "$work/mine.palette" --raw -p "Question: $1
Answer:" -n 8 --temp 0 --stop $'\n' --quiet)
    printf '  %-52.52s  base: "%.24s"  blend: "%.24s"\n' "$1" "${base# }" "${blend# }"
}
ask "what is the weather like in lisbon tomorrow"
ask "please transfer 100 dollars to my savings account"
ask "play some jazz from the sixties"

say "5. A task that the pool has never seen: voice commands (SNIPS). Measured on held-out lines."
show blend -m "$model" --pool "$pool" --examples demo/snips.jsonl --shots 12 --level refined \
    -o "$work/snips.palette" --quiet | grep -E '^(solver|evaluations|before|after|verdict)'

say "6. A question outside of the task goes to a bigger model: a second crayon, on loopback."
if [ -f "$big" ]; then
    "$crayon" serve -m "$big" --port 0 --quiet > "$work/url" 2> "$work/server.log" &
    server=$!
    for _ in $(seq 300); do
        [ -s "$work/url" ] && break
        sleep 0.1
    done
    url=$(head -n 1 "$work/url")
    show route calibrate -m "$model" --palette "$work/mine.palette" --examples demo/clinc150.jsonl \
        --budget 0.1 --quiet | head -n 8
    send=(--upstream "$url" --upstream-model "$(basename "$big" .gguf)" --rule crayon --budget 0.1
        --yes --temp 0)
    echo "- in scope, answered here:"
    show run -m "$model" --palette "$work/mine.palette" --raw -n 8 --stop $'\n' "${send[@]}" \
        -p "Question: please transfer 100 dollars to my savings account
Answer:"
    echo "- out of scope, handed on after this preview:"
    show run -m "$model" --palette "$work/mine.palette" --raw -n 40 "${send[@]}" \
        -p "What is the capital of France, and which river runs through it?"
    say "7. The receipt: everything that left the device."
    show ledger
else
    echo "skip: SmolLM2-135M-Instruct is not on this machine; \`make models\` fetches it (93 MB)."
fi

say "Now yours:"
cat << 'END'
  crayon pool train -m YOUR.gguf --tasks TASKS.jsonl -o YOUR-pool.gguf     # once, on a workstation
  crayon blend -m YOUR.gguf --pool YOUR-pool.gguf --examples MINE.jsonl -o mine.palette
  crayon run -m YOUR.gguf --palette mine.palette -p "..."
END
