# The level "tuned" of blend: better on held-out rows it is kept, as a file beside the palette that works
# like any other; where it is not better the blend is kept and no file is left.
fail() { echo "FAILED: $1"; cat err; exit 1; }
"$CRAYON" version | grep -q '+tune' || { echo "built without training"; exit 77; }
for i in $(seq 1 20); do # a rule that the pool does not know: what is asked for comes back doubled
    w=$(echo cat dog sun tree fish bird moon | cut -d' ' -f$((i % 7 + 1)))
    echo "{\"question\": \"Say $w, please ($i).\", \"answer\": \"$w $w\"}"
done > mine.jsonl
blend=(blend -q -m "$MODELS/crayon-15m-q8_0.gguf" --pool "$MODELS/crayon-15m-pool.gguf" --examples mine.jsonl --evals 4 --worked 0)
"$CRAYON" "${blend[@]}" -o mine.palette --level tuned --json > tuned.json 2> err || fail tuned
grep -E '"(level|solver|tuned_steps|tuned_file|verdict|palette)":' tuned.json
loss() { grep -A 5 "\"$1\": {" tuned.json | grep -oE '"loss": [0-9.]+' | grep -oE '[0-9.]+$'; }
awk -v a="$(loss after)" -v b="$(loss after_tuning)" 'BEGIN {print (b < a ? "the loss of held-out rows falls" : "it does not fall: " a " " b)}'
grep -cE '"tuned_(seconds|memory)": [0-9]' tuned.json
ls
"$CRAYON" info mine.palette | grep -E '^(pool  |level|keeps)'
"$CRAYON" run -q --palette mine.palette -p hello -n 1 > out 2> err || fail run
"$CRAYON" "${blend[@]}" -o mine.palette --level tuned --steps 60 --lr 0.5 > wild.txt 2> err || fail wild
grep -E '^(level|verdict)' wild.txt
"$CRAYON" info mine.palette | grep -c 'tuned'
"$CRAYON" "${blend[@]}" -o other.palette --level tuned --held-out 0 > out 2> err || fail "no held-out lines"
grep -E '^(level|verdict)' out
"$CRAYON" blend -m "$MODELS/crayon-15m-q8_0.gguf" --pool "$MODELS/crayon-15m-pool.gguf" --examples mine.jsonl --evals 1 -o x.palette --level tuned 2>&1 > out |
    grep '^crayon: tuned:' | sed -E 's/b?float(16|32)/PRECISION/; s/[0-9]+(\.[0-9]+)?/N/g'
ls
# A pool that was trained with worked examples is tuned as it was trained, by gentle steps.
"$CRAYON" pool train -q -m "$MODELS/crayon-15m-q8_0.gguf" --tasks mine.jsonl --n 2 --rank 2 --steps 2 --step-tokens 400 --worked 3 \
    --checkpoint-seconds -1 -o chains.gguf > out 2> err || fail "pool train --worked"
"$CRAYON" info chains.gguf | grep '^worked'
"$CRAYON" blend -q -m "$MODELS/crayon-15m-q8_0.gguf" --pool chains.gguf --examples mine.jsonl --evals 1 --level tuned --json -o chains.palette > chains.json 2> err ||
    fail "tuned in chains"
grep -E '"tuned_steps":|"worked_blend"' chains.json
"$CRAYON" blend -q -m "$MODELS/crayon-15m-q8_0.gguf" --pool chains.gguf --examples mine.jsonl --evals 1 --level measured --held-out 0 -o plain.palette > out 2> err ||
    fail "blend of chains"
"$CRAYON" pool train -q -m "$MODELS/crayon-15m-q8_0.gguf" --tasks mine.jsonl --start plain.palette --steps 1 --step-tokens 400 -o on.gguf > out 2> err || fail "start"
"$CRAYON" info on.gguf | grep '^worked'
