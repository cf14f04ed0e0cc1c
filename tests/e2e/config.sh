# Configuration: flag > environment > user's file > system's file > default, and what is wrong is said by line.
export CRAYON_SYSTEM_CONFIG=$PWD/system
mkdir -p "$HOME/.config/crayon"
cat > system <<'END'
# the machine's
threads = 1
[serve]
port = 1001
host = ::1
queue = 7
palette = a.palette
palette = b.palette
END
cat > "$HOME/.config/crayon/config" <<'END'
threads = 2
model = ~/models/my.gguf
[serve]
port = 1002
palette = " with blanks .palette"
END
show() { "$CRAYON" config show "$@" | grep -E '^(#? ?)(threads|port|host|queue|palette|model|alias) ' | sed "s,$HOME,HOME,g; s,$PWD,HERE,g"; }
show --origin
echo "the environment wins:"
CRAYON_PORT=1003 CRAYON_THREADS=3 show serve --origin | grep -E '^(port|threads)'
echo "without --origin, as a file:"
show serve | grep -E 'port|queue'
echo "a flag wins over all:"
CRAYON_MODEL=nowhere "$CRAYON" tokenize -m "$MODELS/crayon-15m-q8_0.gguf" -q < /dev/null > out 2> err; echo "exit $?: $(cat err)"
CRAYON_MODEL=nowhere "$CRAYON" tokenize -q < /dev/null 2>&1 | grep -o "nowhere" | head -n 1
"$CRAYON" config show --json | grep -c '"name": "port"'
CRAYON_CONFIG= "$CRAYON" config show --origin | grep '^port' | sed "s,$PWD,HERE,g"
echo "wrong files:"
try() { printf "$1" > bad; CRAYON_CONFIG=$PWD/bad "$CRAYON" version > out 2> err; echo "exit $?: $(head -n 1 err | sed "s,$PWD,HERE,g")"; }
try 'prot = 1\n'
try '\n\n[serve]\nprot = 1\n'
try '[sevre]\n'
try 'queue = 5\n'
try 'just words\n'
try 'port\001 = 5\n'
CRAYON_CONFIG=$PWD/missing "$CRAYON" version 2>&1 | sed "s,$PWD,HERE,g"
printf '[serve]\nport = many\n' > bad
CRAYON_CONFIG=$PWD/bad "$CRAYON" serve 2>&1 | head -n 1 | sed "s,$PWD,HERE,g"
