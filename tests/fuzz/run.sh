#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs every libFuzzer target of a fuzz build: run.sh BUILD SECONDS. New inputs stay in the build.
set -u
build=$1 seconds=$2 here=$(cd "$(dirname "$0")" && pwd) failed=0
for target in "$build"/tests/fuzz/fuzz_*; do
    [ -f "$target" ] && [ -x "$target" ] || continue
    name=$(basename "$target")
    mkdir -p "$build/corpus/$name"
    echo "== $name, $seconds s"
    "$target" -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=4096 -timeout=20 \
        -print_final_stats=1 -artifact_prefix="$build/corpus/$name-" "$build/corpus/$name" \
        "$here/corpus/$name" > "$build/corpus/$name.log" 2>&1 || failed=1
    grep -E 'ERROR|SUMMARY|stat::number_of_executed_units|Test unit' "$build/corpus/$name.log"
done
exit $failed
