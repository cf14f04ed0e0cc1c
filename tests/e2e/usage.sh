# Misuse: one line on standard error, nothing on standard output, exit code 2.
try() {
    "$CRAYON" "$@" > out 2> err
    echo "$* -> $?, out $(wc -c < out), lines $(wc -l < err): $(cat err)"
}
try
try vresion
try run --tmep 1 -p x
try run --temp x -p x
try run --temp -1 -p x
try run --ctx 12x -p x
try run --threads 65 -p x
try run --seed 99999999999999999999 -p x
try run -n
try run -p --json
try run --tasks x -p x
try run stray -p x
try run --raw --chat -p x
try run --raw --system s -p x
try run --cpu avx -p x
try run --json=yes -p x
try logits -o x
try logits --tokens 1 --prompt x -o x
try logits --tokens 1
try tokenize --lines --jsonl
try adapter
try adapter chek
try pool train
try completion csh
try blend --examples x -o y --level quick
