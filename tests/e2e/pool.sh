# The whole way: train a tiny pool, look at it, blend, use the palette, export, check, convert, merge.
fail() { echo "FAILED: $1"; cat err; exit 1; }
plain() { sed -E "s|$PWD|PWD|g; s/-?[0-9]+\.[0-9]+/N/g"; }
for task in colours animals; do
    for i in $(seq 1 12); do
        [ $task = colours ] && w=(red green blue) || w=(dog cat cow)
        echo "{\"task\": \"$task\", \"question\": \"Name number $i of the $task.\", \"choices\": [\"${w[0]}\", \"${w[1]}\", \"${w[2]}\"], \"answer\": $((i % 3))}"
    done > $task.train.jsonl
    sed 's/Name number/Say number/' $task.train.jsonl > $task.test.jsonl
done
train=(pool train -q --tasks . --n 2 --rank 2 --steps 3 --step-tokens 200)
"$CRAYON" "${train[@]}" --plan --json > plan.json 2> err || fail plan
grep -E '"(tasks|rows|steps)"' plan.json
"$CRAYON" "${train[@]}" -o pool.gguf 2> err || fail train
"$CRAYON" "${train[@]}" -o again.gguf -t 1 2> err || fail "train again"
if "$CRAYON" version | grep -q '+cuda'; then
    echo "a build without CUDA says so"
else
    "$CRAYON" "${train[@]}" --device cuda -o never.gguf 2>&1 | grep -q 'built without the CUDA backend' &&
        echo "a build without CUDA says so"
fi
"$CRAYON" pool export -q pool.gguf --base 1 -o one.gguf --type f32 2> err || fail export
"$CRAYON" pool export -q again.gguf --base 1 -o two.gguf --type f32 2> err || fail export
cmp one.gguf two.gguf && echo "the same pool from one thread"
"$CRAYON" pool info pool.gguf | grep -E '^(kind|pool kind|form|adapters|rank)|^  (colours|animals)'
"$CRAYON" "${train[@]}" --worked 2 --general 0.5 -o worked.gguf 2> err || fail "train with worked examples"
"$CRAYON" pool info worked.gguf | grep -oE '^  any task +[0-9]+'
"$CRAYON" blend -q --pool pool.gguf --examples colours.train.jsonl -o mine.palette --json > blend.json 2> err || fail blend
grep -E '"(level|solver|examples|lines|palette)"' blend.json
"$CRAYON" blend -q --pool pool.gguf --examples colours.train.jsonl -o kept.palette --held-out 0 --level instant > blend.txt 2> err || fail blend
grep -E '^(level|solver|view|verdict)' blend.txt
"$CRAYON" info kept.palette | grep -E '^(kind|keeps|solver|level|examples|pool  )' | plain
for a in "" "--palette kept.palette" "--adapter one.gguf" "--adapter one.gguf:0" "--palette kept.palette --adapter one.gguf:-0.5"; do
    "$CRAYON" logits -q --tokens 10,20,30 -o "logits$(echo "$a" | tr -dc 'a-z0-9-')" $a 2> err || fail "logits $a"
done
cmp -s logits logits--adapteronegguf0 && echo "scale 0 is the base model"
cmp -s logits logits--palettekeptpalette || echo "the palette changes the logits"
cmp -s logits logits--adapteronegguf || echo "the adapter changes the logits"
"$CRAYON" run --palette kept.palette -p hello -n 4 --json 2> err | grep -c '"name": "pool\.[01]"'
"$CRAYON" pool export -q pool.gguf --task colours -o colours.gguf && "$CRAYON" pool export -q pool.gguf --palette kept.palette -o kept-peft && ls kept-peft
"$CRAYON" pool info pool.gguf | grep -E '^types'
for type in f16 f32 q8_0; do "$CRAYON" pool convert -q pool.gguf -o $type.gguf --type $type || fail "convert $type"; done
cmp pool.gguf q8_0.gguf && echo "in 8 bits as it was"
"$CRAYON" pool info f16.gguf | grep -E '^types'
"$CRAYON" pool convert -q f32.gguf -o again.gguf && cmp pool.gguf again.gguf && echo "there and back through float32"
"$CRAYON" pool export -q pool.gguf --task nothing -o x.gguf 2>&1; echo "-> $?"
"$CRAYON" pool export -q pool.gguf --base 2 -o x.gguf 2>&1; echo "-> $?"
"$CRAYON" pool export -q pool.gguf -o x.gguf 2>&1; echo "-> $?"
"$CRAYON" pool export -q pool.gguf --base 1 --type bf16 -o x.gguf 2>&1; echo "-> $?"; test -e x.gguf && echo "x.gguf is there"
"$CRAYON" adapter check -q one.gguf | grep -E '^(fits|pairs|rank|  attn_q)'
"$CRAYON" adapter convert -q one.gguf -o one-peft --type f32 && "$CRAYON" adapter convert -q one-peft -o back.gguf --type f32
"$CRAYON" logits -q --tokens 10,20,30 --adapter back.gguf -o back && cmp back logits--adapteronegguf && echo "there and back"
"$CRAYON" adapter info one-peft | grep -E '^(kind|r  |peft type|tensors)'
"$CRAYON" adapter merge -q --adapter one.gguf -o merged.gguf --type f32 && "$CRAYON" info merged.gguf | grep -E '^(runs here|types)'
"$CRAYON" adapter info pool.gguf 2>&1; echo "-> $?"
"$CRAYON" run -q --palette one.gguf -p x > out 2>&1; echo "no palette -> $?"
"$CRAYON" run -q --adapter pool.gguf -p x > out 2>&1; echo "no adapter -> $?"
mv pool.gguf moved.gguf
"$CRAYON" run -q --palette kept.palette -p x 2>&1 | plain; echo "pool gone -> ${PIPESTATUS[0]}"
"$CRAYON" run -q --palette kept.palette --pool moved.gguf -p x -n 1 > out 2> err && echo "pool found by option"
"$CRAYON" eval -q --tasks . --pool moved.gguf --adapter one.gguf --palette kept.palette --solvers uniform,knn,knn:qx,pick,oracle,0 --shots 4 --limit 6 --svg chart.svg > table 2> err || fail eval
mv moved.gguf pool.gguf
head -n 3 table | sed -E 's/ +[0-9.]+/ N/g'
grep -E '^(pool|unseen|all):' table
grep -c '</svg>' chart.svg
"$CRAYON" eval -q --tasks . --row "a b=pool.gguf:knn:qx" --row lora=one.gguf:0.5 --limit 3 --json --against "a b" > eval.json 2> err || fail "eval rows"
grep -E '^    "(base|a b|lora)"|"against": "' eval.json
# each task's share of ones is its accuracy: rows x two tasks, 3 rows a task
awk '/"task": \{/ {in_task = 1} /"right": \{/ {in_task = 0; in_right = 1} /\}/ {if (!/\{/) in_task = in_right = 0}
    {name = $1; value = $2; gsub(/[",]/, "", value)}
    in_task && value ~ /^[01]\./ {share[name] = value}
    in_right && length(value) == 3 {if (sprintf("%.5f", gsub(/1/, "", value) / 3) == share[name]) same++}
    END {print same " accuracies are shares of ones"}' eval.json
for bad in "x=pool.gguf:nothing" "x=none.gguf" "=one.gguf" "x" "base=one.gguf" "x=pool.gguf:knn:side"; do
    "$CRAYON" eval -q --tasks . --row "$bad" > out 2> err; echo "$bad -> $?: $(wc -l < err)"
done
"$CRAYON" eval -q --tasks . --against nothing 2>&1; echo "-> $?"
"$CRAYON" eval -q 2>&1; echo "-> $?"
cp "$HERE/../data/stories260K.gguf" smollm2-135m-instruct-q4_1.gguf # another model under the name of one whose pool comes with the program
"$CRAYON" blend -m smollm2-135m-instruct-q4_1.gguf --examples colours.train.jsonl -o x.palette 2>&1 | sed -E 's|/[^ ]*/models/|MODELS/|g; s/[0-9a-f]{64}/HASH/g'; echo "-> ${PIPESTATUS[0]}"
