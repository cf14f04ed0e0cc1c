# The demo runs and its transcript shows what the README promises. Numbers depend on the machine, so
# only their presence and order are compared. The part with SmolLM2 needs `make models`.
cd "$HERE/../.." || exit 1
CRAYON_SMOLLM2=/nonexistent CRAYON=$CRAYON bash demo/demo.sh > "$HOME/transcript" || exit 1
grep -oE '^[0-9]\. .*|^verdict +.*|^skip: .*(only)?|base: "[^"]*"  blend: "(weather|transfer)"' "$HOME/transcript"
awk '/^before /{b=$3} /^after /{if ($3 + 0 <= b + 0) exit 1}' "$HOME/transcript" || echo "a blend did not help"
awk '/^embed ms /{e=$3} /^solve ms /{s=$3} END{if (e <= 0 || s <= 0) print "no times"}' "$HOME/transcript"
