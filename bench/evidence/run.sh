#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# `make evidence`: run.sh [TASK_DIR]. With a folder of task files and an NVIDIA GPU the jobs that have no
# result yet are run first (crayon must be built with -DCRAYON_CUDA=ON in build/cuda; tokenizers: TOKENIZERS,
# a folder with smollm2.json and 15m.json; SmolLM2: `make models`). Then the page is made from the results.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3} results=results page=../../docs/evidence.md
tasks=${1:-}
models=${CRAYON_MODELS:-${XDG_DATA_HOME:-$HOME/.local/share}/crayon/models}
if [ -n "$tasks" ]; then
    command -v nvidia-smi > /dev/null || { echo "evidence: no NVIDIA GPU here; only the page is made" >&2; tasks=; }
fi
if [ -n "$tasks" ]; then
    work=${EVIDENCE_WORK:-/tmp/crayon-evidence}
    mkdir -p "$work/train"
    for m in 15m smollm2; do
        model=../../models/crayon-15m-q8_0.gguf
        [ $m = smollm2 ] && model=$models/smollm2-135m-instruct-q4_1.gguf
        [ -f "$work/$m.npz" ] || "$python" pack.py "$tasks" split.json "${TOKENIZERS:?}/$m.json" "$work/$m.npz" --rows "$work/train"
        "$python" plan.py $m > "$work/$m.json"
        mkdir -p "$work/$m"
        cp -n $results/$m/*.json "$work/$m/" && rm -f "$work/$m/tasks.json"
        for gpu in $(nvidia-smi --query-gpu=index --format=csv,noheader); do
            CUDA_VISIBLE_DEVICES=$gpu "$python" lab.py --model "$model" --pack "$work/$m.npz" --plan "$work/$m.json" \
                --out "$work/$m" --crayon ../../build/cuda/crayon --train "$work/train" &
        done
        wait
        "$python" collect.py "$work/$m" "$work/$m.npz" $results/$m
    done
fi
"$python" report.py $results $page
