# ATTACKS that meet the command line. A number is the line of the list of attacks.
esc=$(printf '\033[31m\007')
control() { if LC_ALL=C grep -qP '[\x00-\x08\x0b-\x1f\x7f]' "$1"; then echo "control characters reach $1"; else echo clean; fi; }
# 17: a FIFO does not hang
mkfifo fifo
timeout 10 "$CRAYON" blend -q --examples fifo --pool fifo -o x > out 2>&1; echo "17 fifo as pool $?"
timeout 10 "$CRAYON" info fifo > out 2>&1; echo "17 fifo as file $?"
timeout 10 "$CRAYON" adapter check -q fifo > out 2>&1; echo "17 fifo as adapter $?"
timeout 10 "$CRAYON" run -q --palette fifo -p x > out 2>&1; echo "17 fifo as palette $?"
timeout 10 "$CRAYON" info /dev/zero > out 2>&1; echo "17 device $?"
# 41: escape sequences of names and files
"$CRAYON" tokenize -q "no${esc}where" 2> err; echo "41 file name $? $(control err)"
"$CRAYON" "${esc}" 2> err; echo "41 verb $? $(control err)"
"$CRAYON" run "--${esc}" 2> err; echo "41 option $? $(control err)"
for i in 1 2 3 4; do echo "{\"task\": \"a\\u001b[31mb\", \"question\": \"q$i\", \"choices\": [\"x\", \"y\"], \"answer\": 0}"; done > tasks.jsonl
"$CRAYON" eval -q --tasks tasks.jsonl --shots 1 > table 2> err; echo "41 task name $? $(control table)"
"$CRAYON" eval -q --tasks tasks.jsonl --shots 1 --json --svg chart.svg > json 2> err; echo "41 task name as JSON $? $(control json) $(control chart.svg)"
# 51: no home, a home that cannot be written to, relative variables, a full disk
HOME=/proc/none "$CRAYON" run -q --raw -p x -n 1 > out 2> err; echo "51 no home $?"
XDG_DATA_HOME=../here XDG_STATE_HOME=. "$CRAYON" run -q --raw -p x -n 1 > out 2> err; echo "51 relative $?"
(ulimit -f 4; "$CRAYON" logits -q --tokens 1,2,3,4 -o big.f32 2> err; echo "51 full $? $(cat err)"; ls big* 2> /dev/null)
# 55: few descriptors, little memory
(ulimit -n 16; "$CRAYON" run -q --raw -p x -n 1 > out 2> err; echo "55 descriptors $?")
(ulimit -v 4000000
if "$CRAYON" version > out 2>&1; then # a sanitizer needs more address space than that
    "$CRAYON" run -q --raw -p x -n 1 -t 1 --ctx 1000000 > out 2> err
    echo "55 memory $?"
    for mb in 20 40 60 80 120 160 240 400; do # it works, or is short of something and says so
        (ulimit -v $((mb * 1024)); "$CRAYON" run -q --raw -p x -n 1 -t 1 --pages map > out 2> err) 2>> err
        code=$?
        case $code in 0) ;; 127 | 1 | 3 | 7) [ -s err ] || echo "55 $mb MB: $code and silent" ;; *) echo "55 $mb MB: $code $(cat err)" ;; esac
    done
else
    echo "55 memory 7"
fi)
# 59: a locale with another decimal point, made here where the system has none
mkdir locales
for l in de_DE tr_TR; do localedef -i $l -f UTF-8 locales/$l.UTF-8 2> err || cat err >&2; done
export LOCPATH=$PWD/locales ASAN_OPTIONS=detect_leaks=0 # glibc keeps what it makes of LOCPATH
"$CRAYON" score -q --cpu ref <<< '{"prompt": "a", "completion": " b"}' > plain
for l in de_DE.UTF-8 tr_TR.UTF-8; do LC_ALL=$l "$CRAYON" score -q --cpu ref <<< '{"prompt": "a", "completion": " b"}' | cmp - plain && echo "59 $l"; done
LC_ALL=de_DE.UTF-8 "$CRAYON" run -q --raw -p x -n 1 --temp 0,5 2> err; echo "59 comma $?"
