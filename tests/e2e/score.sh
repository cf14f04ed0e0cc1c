# Log-probabilities: text and ids, empty prompts, bad lines by number.
s() { "$CRAYON" score -q --cpu ref "$@" 2>&1; echo "-> $?"; }
round() { sed -E 's/(-?[0-9]+\.[0-9]{3})[0-9]*/\1/g'; }
printf '{"prompt": "The sky is", "completion": " blue"}\n\n{"prompt": [1, 2, 3], "completion": [4, 5]}\n' | s | round
printf '{"prompt": [], "completion": [4, 5]}\n{"prompt": [7], "completion": []}\n' | s | round
printf '{"prompt": [], "completion": []}\n' | s
printf '{"prompt": [1], "completion": [2]}\n{"prompt": [8192], "completion": [1]}\n' | s | round
printf '{"prompt": [1.5], "completion": [1]}\n' | s
printf '{"prompt": 5, "completion": [1]}\n' | s
printf '{"prompt": "x"}\n' | s
printf '[1]\n' | s
printf '{"prompt": "x", "completion": "y"' | s
long=$(seq -s, 1 1100)
printf '{"prompt": [%s], "completion": [1]}\n' "$long" | s
# One pass or many, one thread or two: the same numbers.
for i in 1 2 3 4 5; do printf '{"prompt": "Number %d is", "completion": " a number"}\n' $i; done > many
"$CRAYON" score -q -t 1 many > one
"$CRAYON" score -q -t 2 < many > two
cmp one two && wc -l < one
