# Text comes out the same from one thread and two, streamed or as JSON; stops, limits, both ends.
r() { "$CRAYON" run -q "$@"; }
r --raw -p "Once upon a time" -n 16 --temp 0 -t 1 > one
r --raw -p "Once upon a time" -n 16 --temp 0 -t 2 > two
cmp one two && echo "threads do not matter"
printf 'Once upon a time\n' | r --raw -n 16 --temp 0 | cmp - one && echo "standard input is a prompt"
r -p "Hi" --seed 7 -n 16 > a
r -p "Hi" --seed 7 -n 16 > b
r -p "Hi" --seed 8 -n 16 > c
cmp a b && ! cmp -s a c && echo "the seed decides"
r --raw -p "Once upon a time" -n 16 --temp 0 --json > json
tr -d '\n' < json | grep -oE '"(text|tokens|logprobs|finish_reason|timings|load_ms|first_token_ms|prefill_tokens|prefill_ms|decode_tokens|decode_ms|crayon|route|why|confidence|scope|blend)":'
grep -E '"(finish_reason|decode_tokens|route)"' json
r --raw -p "Once upon a time" -n 0 --temp 0 --json | grep finish_reason
stop=$(cut -d' ' -f3 one)
r --raw -p "Once upon a time" -n 16 --temp 0 --stop "$stop" --stop nothing | grep -c -- "$stop"
"$CRAYON" run --raw -p "Once upon a time" -n 8 --temp 0 2> err > out
sed -E 's/[0-9]+\.[0-9]+/N/g; s/logits [0-9a-f]{8}$/logits H/; s/model .*/model M/' err
r --raw -p "" -n 4 > out 2> err; echo "empty raw prompt $? $(wc -c < out)"
printf 'a\0b' | r --chat 2>&1; echo "NUL in a chat $?"
r --raw -p "$(seq -s' ' 1 3000)" -n 4 2>&1 | sed -E 's/[0-9]+/N/g'; echo "too long ${PIPESTATUS[0]}"
r --raw -p "x" -n 200 --ignore-end | head -c 1 > /dev/null; echo "reader gone ${PIPESTATUS[0]}"
r --raw -p "x" -n 4 > /dev/full 2> err; echo "disk full $? $(cat err)"
r --raw -p "x" -n 4 >&- 2> err; echo "closed output $?"
