# Bytes in, ids out; the first bad line is named.
t() { "$CRAYON" tokenize -q "$@"; echo "-> $?"; }
printf 'Hello world' | t
printf 'Hello world' | t --json
printf '' | t --json
printf 'one\ntwo\n\nlast' | t --lines
printf 'a\0b\n\377\376\n' | t --lines
printf '{"text": "one"}\n{"text": "", "id": 3}\n' | t --jsonl
printf '{"text": "one"}\n{"text": 1}\n' | t --jsonl 2>&1
printf '{"text": "one"}\n{"text": "a", "text": "b"}\n' | t --jsonl 2>&1
printf '{"text": "one"}\nnonsense\n' | t --jsonl 2>&1
printf '<|im_start|>user' | t
printf '<|im_start|>user' | t --special
printf 'x\n' > file
t --lines file
t --lines nothing 2>&1
t --lines . 2>&1
