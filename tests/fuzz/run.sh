#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs the libFuzzer targets of a fuzz build: run.sh BUILD SECONDS [RUNS] [TARGET...]. Each runs for SECONDS, or
# until it has made RUNS executions where that is not 0. New inputs stay in the build.
set -u
build=$1 seconds=$2 runs=${3:-0} here=$(cd "$(dirname "$0")" && pwd) failed=0
[ "$runs" = 0 ] && limit="-max_total_time=$seconds" || limit="-runs=$runs"
shift $(($# < 3 ? $# : 3))
[ $# = 0 ] && set -- $(cd "$build/tests/fuzz" && find . -maxdepth 1 -type f -executable -name 'fuzz_*' -printf '%f\n' | sort)
for name; do
    mkdir -p "$build/corpus/$name"
    echo "== $name, ${limit#-}"
    start=$(date +%s)
    "$build/tests/fuzz/$name" "$limit" -max_len=65536 -rss_limit_mb=4096 -timeout="${FUZZ_TIMEOUT:-20}" \
        -print_final_stats=1 -artifact_prefix="$build/corpus/$name-" "$build/corpus/$name" \
        "$here/corpus/$name" > "$build/corpus/$name.log" 2>&1 || failed=1
    grep -E 'ERROR|SUMMARY|Test unit' "$build/corpus/$name.log"
    echo "$(sed -n 's/^stat::number_of_executed_units: //p' "$build/corpus/$name.log") executions in $(($(date +%s) - start)) s"
done
exit $failed
