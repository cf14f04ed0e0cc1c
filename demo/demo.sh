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

say "1. A model of 15 million parameters, and a pool of base adapters trained once on 36 tasks."
show info "$model" --quiet
show pool info "$pool" --quiet | head -n 16

say "2. Your examples: voice commands and what they ask for. The pool has never seen this task."
head -n 3 demo/snips.jsonl | cut -c 1-110

say "3. Blend: examples become weights. No training; before and after are measured on held-out lines."
show blend -m "$model" --pool "$pool" --examples demo/snips.jsonl -o "$work/snips.palette"

say "4. The same questions to the base model and to the blend."
right_base=0 right_blend=0 n=0
ask() { # QUESTION ANSWER
    local base blend
    base=$("$crayon" run -m "$model" --raw -p "Question: $1
Answer:" -n 8 --temp 0 --stop $'\n' --quiet 2> /dev/null)
    blend=$("$crayon" run -m "$model" --palette "$work/snips.palette" --raw -p "Question: $1
Answer:" -n 8 --temp 0 --stop $'\n' --quiet 2> /dev/null)
    printf '  %-58.58s  base: %-24.24s blend: %s\n' "$1" "${base# }" "${blend# }"
}
ask "Will it rain in Lisbon tomorrow morning?"
ask "Put this song on my summer hits playlist."
ask "Book a table for four at a sushi place tonight."

say "5. A question outside of the task goes to a bigger model: a second crayon, on loopback."
if [ -f "$big" ]; then
    "$crayon" serve -m "$big" --port 0 --quiet > "$work/url" 2> "$work/server.log" &
    server=$!
    for _ in $(seq 100); do
        [ -s "$work/url" ] && break
        sleep 0.1
    done
    url=$(head -n 1 "$work/url")
    show route calibrate -m "$model" --palette "$work/snips.palette" --examples demo/snips.jsonl \
        --budget 0.1 --quiet
    echo "- in scope, answered here:"
    show run -m "$model" --palette "$work/snips.palette" --raw --temp 0 -n 8 --stop $'\n' \
        --upstream "$url" --upstream-model "$(basename "$big" .gguf)" --rule crayon --budget 0.1 --yes \
        -p $'Question: Play the new album by Adele.\nAnswer:'
    echo "- out of scope, handed on after this preview:"
    show run -m "$model" --palette "$work/snips.palette" --temp 0 -n 40 \
        --upstream "$url" --upstream-model "$(basename "$big" .gguf)" --rule crayon --budget 0.1 --yes \
        -p "What is the capital of France, and which river runs through it?"
    say "6. The receipt: everything that left the device."
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
