# The models folder: none, empty, and with one of each kind, one broken and one unfinished.
env -u HOME "$CRAYON" list; echo $?
"$CRAYON" list | sed "s|$HOME|HOME|"; echo $?
dir=$HOME/.local/share/crayon/models
mkdir -p "$dir/peft" "$dir/other"
cp "$MODELS/crayon-15m-pool.gguf" "$dir/b-pool.gguf"
ln -s "$(realpath "$MODELS")/crayon-15m-q8_0.gguf" "$dir/a.gguf"
head -c 100000 "$dir/a.gguf" > "$dir/cut.gguf"
head -c 1000 "$dir/a.gguf" > "$dir/more.gguf.part"
"$CRAYON" pool export -q "$dir/b-pool.gguf" -m a --base 3 -o "$dir/c.gguf" || exit 1
echo '{"r": 8}' > "$dir/peft/adapter_config.json"
echo text > "$dir/notes.txt"
"$CRAYON" list | sed "s|$HOME|HOME|" | tee text
"$CRAYON" list --json | grep -cE '"name": "(a|b-pool.gguf|c.gguf|cut.gguf|more.gguf.part|peft)", "kind"'
"$CRAYON" info -q "$(awk '$2 == "model" { print $1 }' text)" | grep -E '^(kind|layers)'
"$CRAYON" list more; echo $?
