# Raw float32 [n_tokens, n_vocab]: size, prefixes, threads, refusals.
"$CRAYON" logits -q --tokens 10,20,30 -o three.f32 || exit 1
"$CRAYON" logits -q --tokens 10,20 -o - -t 1 > two.f32 || exit 1
stat -c %s three.f32 two.f32
cmp -n "$(stat -c %s two.f32)" three.f32 two.f32 && echo "a prefix is a prefix, with one thread too"
"$CRAYON" logits --tokens 10,20,30 -o again.f32 -t 2 2> err && cmp three.f32 again.f32 && echo same
grep -oE 'logits [0-9a-f]{8}$' err | tr '0-9a-f' '#'| tr -d ' ' | cut -c1-6
for bad in "" , 1, 1,,2 -1 8192 1x "1, 2" 99999999999999999999; do
    "$CRAYON" logits -q --tokens "$bad" -o bad.f32 2>&1
    echo "-> $?"
done
ls
"$CRAYON" logits -q --tokens 1 -o no/such/place.f32 > out 2>&1
echo "no folder $?"
"$CRAYON" logits -q --tokens 1 -o - > /dev/full 2> err
echo "full $? $(cat err)"
