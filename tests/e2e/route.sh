# Routing where no server answers, none is allowed or nothing may leave: the device always answers.
model=$MODELS/crayon-15m-q8_0.gguf
ask() { "$CRAYON" run -m "$model" -p "What is a crayon?" -n 8 --temp 0 "$@" > out 2> err; }
why() { sed -n 's/^ *"\(route\|why\|left_device_bytes\)": \(.*\)/\1 \2/p' out | sed 's/127.0.0.1:[0-9]*/HOST/g'; }
nobody="--upstream http://127.0.0.1:1 --upstream-model big --rule random --budget 1"

echo "the device's own answer:"
ask --quiet && cp out plain && cat plain
for extra in "" "--offline --yes"; do
    echo "not allowed to leave: $extra"
    ask $nobody $extra --json; echo "exit $?"; why
    ask $nobody $extra --quiet; cmp out plain && echo "same text"
done
"$CRAYON" ledger | head -n 1 | sed "s,$HOME,HOME,"

echo "allowed, but nobody answers:"
CRAYON_API_KEY=CANARY-1d5c9e ask $nobody --yes --json; echo "exit $?"; why
grep -c "would leave this device" err
grep -c 'Bearer \*\*\*\*\*\*\*\*' err
"$CRAYON" ledger | sed -n '2,$p' | sed 's/^20[0-9T:.-]*Z/TIME/; s/127.0.0.1:[0-9]*/HOST/g' | head -n 3
"$CRAYON" ledger --json | grep -c '"request_id": "run-'
printf 'CANARY-2a' > key
ask $nobody --yes --upstream-key-file key --quiet; cmp out plain && echo "same text"
rm key
grep -rl CANARY "$HOME" . ; echo "files with the key: $(grep -rl CANARY "$HOME" . | wc -l)"

echo "no place for the ledger:"
XDG_STATE_HOME=/dev/null/x ask $nobody --yes --json; echo "exit $?"; why
echo "no home:"
env -u HOME "$CRAYON" run -m "$model" -p "What is a crayon?" -n 8 --temp 0 $nobody --yes --json > out 2> err
echo "exit $?"; why

echo "refused at once:"
try() { "$CRAYON" run -m "$model" -p x "$@" > out 2> err; echo "exit $?: $(cat err)"; }
try --upstream http://192.0.2.1 --upstream-model big --rule random
try --upstream http://127.0.0.1:1 --rule random
try --upstream http://127.0.0.1:1 --upstream-model big
try --upstream https://me:secret@server.example --upstream-model big --rule random
try --upstream ftp://server.example --upstream-model big --rule random
try $nobody --upstream-price 5
try $nobody --upstream-key-file missing

echo "explain, offline by the kernel's word:"
"$CRAYON" route explain -m "$model" -p "What is a crayon?" -n 8 --temp 0 --compare-base > out
grep -E '^  (confidence|p1|change|scope) ' out | tr -s ' ' | sed 's,\(\.[0-9]\)[0-9]*,\1,'
grep -E '^[* ] (random|crayon) ' out | tr -s ' '
