# Help, manual and completions: whole, without warnings, and completing what the table says.
for v in run tokenize "adapter check" "pool train" eval version; do
    "$CRAYON" $v --help > help && grep -c '^usage: crayon' help
done
"$CRAYON" help run | head -n 1
"$CRAYON" adapter --help | sed -n '1p;4,7p'
"$CRAYON" --version
"$CRAYON" man > man.1
if command -v groff > /dev/null; then
    groff -man -Tascii -P-c -P-b -P-o -P-u -ww -b man.1 > man.txt 2> warnings
    cat warnings
    grep -c 'EXIT STATUS' man.txt > /dev/null || echo "no exit status"
fi
"$CRAYON" completion bash > bash.sh
source ./bash.sh
complete_line() { # the last word is being typed
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _crayon
    echo "$* -> $(printf '%s\n' "${COMPREPLY[@]}" | sort | tr '\n' ' ')"
}
touch model.gguf
complete_line crayon to
complete_line crayon ver
complete_line crayon adapter ""
complete_line crayon run --temp
complete_line crayon run --temp ""
complete_line crayon run --cpu a
complete_line crayon run -m mod
complete_line crayon run --adapter mod
complete_line crayon tokenize mod
complete_line crayon completion ""
complete_line crayon adapter check mod
complete_line crayon adapter check --cp
complete_line crayon help ru
for shell in zsh fish; do
    "$CRAYON" completion $shell > $shell.txt && command -v $shell > /dev/null && $shell -n $shell.txt
done
wc -l < fish.txt | grep -c '^[0-9][0-9]'
