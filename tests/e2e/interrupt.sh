# Ctrl-C once: the text so far and a normal end. Twice: 130.
"$CRAYON" run --raw -p "Once upon a time" -n 100000 --ignore-end --json > out 2> err &
pid=$!
sleep 1
kill -INT $pid
wait $pid
echo "once $?"
grep -c '"finish_reason": "\(cancelled\|length\)"' out
