# Two processes train what one process trains, within rounding; without MPI they are refused.
for i in $(seq 1 40); do
    echo "{\"task\": \"t$((i % 2))\", \"question\": \"Question $i?\", \"choices\": [\"one\", \"two\"], \"answer\": $((i % 2))}"
done > t.jsonl
train=(pool train -q --tasks t.jsonl --n 2 --rank 2 --steps 6 --step-tokens 300 --batch-tokens 60 --precision f32 --type f32)
if ! "$CRAYON" version | grep -q '+mpi'; then
    OMPI_COMM_WORLD_SIZE=2 "$CRAYON" "${train[@]}" -o two.gguf && echo "not refused"
    echo "skip: e2e_mpi: built without MPI"
    exit 77
fi
two=(mpirun --allow-run-as-root --oversubscribe -n 2 "$CRAYON")
"$CRAYON" "${train[@]}" -o one.gguf || exit 1
"${two[@]}" "${train[@]}" -o two.gguf || exit 1
for p in one two; do
    "$CRAYON" pool export -q $p.gguf --base 0 -o $p.lora.gguf --type f32
    od -An -v -t f4 -w4 $p.lora.gguf > $p.txt
done
# Beside the numbers the files have the same text, which gives the same "numbers".
paste one.txt two.txt | awk '$1 != $2 { d = $1 - $2; d = d < 0 ? -d : d; if (d > worst) worst = d }
    END { print worst < 2e-4 ? "the same pool" : "worst difference " worst }'
"${two[@]}" "${train[@]}" --lr x -o bad.gguf > /dev/null 2>&1 || echo "a wrong option ends both"
