# Worked examples: a palette keeps some of the user's lines where more held-out lines are right behind them,
# and run and eval put them in front; ties and too few lines stay with the plain blend.
fail() { echo "FAILED: $1"; cat err; exit 1; }
for i in $(seq 1 24); do # no weights of the pool give this answer; a look at another line does
    w=$(echo cat dog sun tree fish bird moon | cut -d' ' -f$((i % 7 + 1)))
    echo "{\"question\": \"What about the $w number $i?\", \"answer\": \"green apple seven\"}"
done > mine.jsonl
blend=(blend -m "$MODELS/crayon-15m-q8_0.gguf" --pool "$MODELS/crayon-15m-pool.gguf" --examples mine.jsonl --evals 2)
"$CRAYON" "${blend[@]}" -o mine.palette --json > mine.json 2> err || fail blend
grep -E '"(level|worked_examples|verdict|helps)":' mine.json
grep -o 'the palette keeps .*' err
grep -A 5 '"worked_blend"' mine.json | grep exact
"$CRAYON" info mine.palette | grep -E '^(keeps|worked)'
grep -c '"question"' mine.palette
grep '"version"' mine.palette
"$CRAYON" run -q --palette mine.palette -p "What about the bear number 3?"
"$CRAYON" run --palette mine.palette -p "What about the bear number 3?" -n 4 --ctx 100 2>&1 > out | grep -o '.*worked examples fit.*'
"$CRAYON" run -q --chat --palette mine.palette -p "What about the bear number 3?" -n 3 > out 2> err || fail chat
ask='{"prompt": "Question: What about the bear number 3?\nAnswer:", "completion": " green apple seven\n"}'
echo "$ask" | "$CRAYON" score -q --palette mine.palette | grep -o '"is_greedy":.*'
echo "$ask" | "$CRAYON" score -q --palette mine.palette --ctx 40 | grep -o '"is_greedy":.*'
sed -n 1,6p mine.jsonl > new.test.jsonl
"$CRAYON" eval -q new.test.jsonl --palette mine.palette --shots 0 --f1 | grep -E '^ +(base|palette)' | cut -c 1-38
sed -n 7,12p mine.jsonl > new.train.jsonl
"$CRAYON" eval -q new.test.jsonl --worked 3 --json > eval.json || fail "eval --worked"
grep -A 99 '"rows"' eval.json | grep -E '"(base|base, 3 worked)": \{|"new"' | tr -d ' '
"$CRAYON" run -m "$MODELS/crayon-15m-q8_0.gguf" --palette mine.palette --rule random --budget 1 --yes --upstream http://127.0.0.1:1 \
    --upstream-model big -p "What about the bear number 3?" 2> err # the server gets the question alone; here none answers
grep -o '^  body: .*' err
"$CRAYON" "${blend[@]}" -q -o none.palette --worked 0 | grep -E '^(after|worked)' | sed 's/, loss.*//'
head -9 mine.jsonl > few.jsonl # three lines are held out, too few to tell
"$CRAYON" "${blend[@]}" -q --examples few.jsonl -o few.palette 2>&1 | grep -E '^(after|worked|verdict)' | sed 's/, loss.*//'
for i in $(seq 1 16); do echo "{\"question\": \"Is $i a number?\", \"choices\": [\"xqz\", \"yes, it is\"], \"answer\": 1}"; done > tie.jsonl
"$CRAYON" "${blend[@]}" -q --examples tie.jsonl -o tie.palette | grep -E '^(after|worked|verdict)' | sed 's/, loss.*//'
grep '"version"' tie.palette
"$CRAYON" "${blend[@]}" -q --worked 17 -o x.palette 2>&1 | head -1
