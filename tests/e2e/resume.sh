# Training that is stopped by Ctrl-C goes on to the same pool.
for i in $(seq 1 40); do
    echo "{\"task\": \"t$((i % 2))\", \"question\": \"Question $i?\", \"choices\": [\"one\", \"two\"], \"answer\": $((i % 2))}"
done > t.jsonl
train=(pool train -q --tasks t.jsonl --n 2 --rank 2 --steps 12 --step-tokens 300 --checkpoint-steps 1)
"$CRAYON" "${train[@]}" -o whole.gguf || exit 1
"$CRAYON" "${train[@]}" -o parts.gguf 2> err &
pid=$!
for i in $(seq 1 1500); do
    [ -f parts.gguf.checkpoint ] && break
    sleep 0.02
done
kill -INT $pid
wait $pid
code=$?
echo "stopped $code: $(sed -E "s|step [0-9]+|step N|" err)"
ls parts.gguf* 
"$CRAYON" "${train[@]}" -o parts.gguf --resume || exit 1
ls parts.gguf*
for p in whole parts; do "$CRAYON" pool export -q $p.gguf --base 0 -o $p.lora.gguf --type f32; done
cmp whole.lora.gguf parts.lora.gguf && echo "the same pool"
