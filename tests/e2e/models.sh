# Where models are looked for, and what is said when they are not there.
"$CRAYON" tokenize -q --json <<< "one two" > here || exit 1
mkdir -p "$HOME/.local/share/crayon/models" data/crayon/models
ln -s "$(realpath "$MODELS")/crayon-15m-q8_0.gguf" "$HOME/.local/share/crayon/models/small.gguf"
for name in small small.gguf; do "$CRAYON" tokenize -q -m $name --json <<< "one two" | cmp - here && echo "home $name"; done
XDG_DATA_HOME=relative "$CRAYON" tokenize -q -m small --json <<< "one two" | cmp - here && echo "relative variable ignored"
XDG_DATA_HOME=$PWD/data "$CRAYON" tokenize -q -m small --json <<< "one two" 2> err
echo "elsewhere $?: $(sed "s|$PWD|PWD|" err)"
CRAYON_MODEL=small "$CRAYON" tokenize -q --json <<< "one two" | cmp - here && echo "environment"
CRAYON_MODEL=nothing "$CRAYON" tokenize -q -m small --json <<< "one two" | cmp - here && echo "flag wins"
env -u HOME "$CRAYON" tokenize -q -m nothing <<< x 2>&1; echo "no home $?"
"$CRAYON" tokenize -q -m ./none.gguf <<< x 2>&1; echo "path $?"
: > empty.gguf
"$CRAYON" tokenize -q -m empty.gguf <<< x > out 2>&1; echo "empty $?"
head -c 100000 "$MODELS/crayon-15m-q8_0.gguf" > cut.gguf
"$CRAYON" tokenize -q -m cut.gguf <<< x > out 2>&1; echo "cut $?"
mkfifo pipe.gguf
"$CRAYON" tokenize -q -m pipe.gguf <<< x > out 2>&1; echo "fifo $?"
"$CRAYON" tokenize -q -m . <<< x > out 2>&1; echo "folder $?"
