#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# `make evidence`: run.sh [TASK_DIR]. Without a folder the page is made from the committed results. With a folder of
# task files and an NVIDIA GPU the jobs that have no result yet are run first (crayon built with -DCRAYON_CUDA=ON in
# build/cuda; SmolLM2: `make models`). Without a GPU those jobs are named and skipped, and a small run of the 15M on
# the CPU tries the whole way, from the task files to a page of its own; its numbers mean nothing.
# EVIDENCE_WORK: where jobs leave their results and go on.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3} results=results page=../../docs/evidence.md
models=${CRAYON_MODELS:-${XDG_DATA_HOME:-$HOME/.local/share}/crayon/models}
work=${EVIDENCE_WORK:-/tmp/crayon-evidence}

pack() { # NAME MODEL WORK [--small]
    mkdir -p "$3/train" "$3/$1"
    [ -f "$3/$1.npz" ] || "$python" pack.py "$tasks" split.json "$2" "$3/$1.npz" --rows "$3/train" ${4:-}
}

if [ $# -gt 0 ] && [ -n "$1" ]; then
    tasks=$(realpath "$1")
    if command -v nvidia-smi > /dev/null; then
        for m in 15m smollm2; do
            model=../../models/crayon-15m-q8_0.gguf
            [ $m = smollm2 ] && model=$models/smollm2-135m-instruct-q4_1.gguf
            pack $m "$model" "$work"
            "$python" plan.py $m > "$work/$m.json"
            cp -n $results/$m/*.json "$work/$m/" && rm -f "$work/$m/tasks.json"
            for gpu in $(nvidia-smi --query-gpu=index --format=csv,noheader); do
                CUDA_VISIBLE_DEVICES=$gpu "$python" lab.py --model "$model" --pack "$work/$m.npz" --plan "$work/$m.json" \
                    --out "$work/$m" --crayon ../../build/cuda/crayon --train "$work/train" &
            done
            wait
            "$python" collect.py "$work/$m" "$work/$m.npz" $results/$m
        done
    else
        for m in 15m smollm2; do
            missing=$("$python" plan.py $m | "$python" -c 'import json, os, sys
jobs = [j["name"] for j in json.load(sys.stdin)]
new = [j for j in jobs if not os.path.exists(sys.argv[1] + "/" + j + ".json")]
print("%d of %d jobs have no result%s" % (len(new), len(jobs), ": " + " ".join(new) if new else ""))' $results/$m)
            echo "evidence: no NVIDIA GPU here, skipped: $m: $missing" >&2
        done
        small=$work/small
        pack 15m ../../models/crayon-15m-q8_0.gguf "$small" --small
        "$python" plan.py small > "$small/15m.json"
        echo "evidence: a small run of the 15M on the CPU instead, in $small" >&2
        "$python" lab.py --model ../../models/crayon-15m-q8_0.gguf --pack "$small/15m.npz" --plan "$small/15m.json" --out "$small/15m" \
            --device cpu --small --crayon ../../build/crayon --train "$small/train"
        rm -rf "$small/page" && mkdir -p "$small/page"
        cp -r $results/smollm2 $results/15m-command.json "$small/page/"
        "$python" collect.py "$small/15m" "$small/15m.npz" "$small/page/15m"
        cp $page "$small/page/evidence.md"
        "$python" report.py "$small/page" "$small/page/evidence.md"
        echo "evidence: wrote $small/page/evidence.md" >&2
    fi
fi
"$python" report.py $results $page
