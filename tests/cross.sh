#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The kernel tests on processors that this machine is not, under QEMU: an aarch64 with and without
# SDOT and SMMLA, and an x86-64 without AVX. What a missing tool leaves out is said by name; exit 77
# when nothing could run. (An x86-64 with AVX2 only: QEMU 7.2 reads what a masked load must not.)
set -u -o pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
flags="-std=c11 -D_GNU_SOURCE -O2 -ffp-contract=off -Iinclude -Isrc -Itests"
common="src/base/mem.c src/base/rng.c src/base/error.c src/kernels/quant.c src/kernels/kernels.c
  src/kernels/kernels_ref.c tests/kernels/test_kernels.c"
ran=0
failed=0

# build NAME COMPILER LEVEL=FLAGS...: common files plain, each level with its own flags
build() {
    local name=$1 cc=$2 objects=()
    shift 2
    for f in $common; do
        $cc $flags -c "$f" -o "$out/$name-$(basename "$f" .c).o" || return 1
        objects+=("$out/$name-$(basename "$f" .c).o")
    done
    for level in "$@"; do
        local file=src/kernels/kernels_${level%%=*}.c
        $cc $flags ${level#*=} -c "$file" -o "$out/$name-${level%%=*}.o" || return 1
        objects+=("$out/$name-${level%%=*}.o")
    done
    $cc -static "${objects[@]}" -lm -lpthread -o "$out/$name"
}

# check LABEL LEVELS COMMAND...: the run passes and has gone through exactly these levels
check() {
    local label=$1 want=$2 text
    shift 2
    text=$("$@" 2>&1)
    local rc=$? got
    got=$(echo "$text" | awk '/ checks, 0 failed/ {printf "%s%s", sep, $1; sep = " "}')
    if [ $rc = 0 ] && [ "$got" = "$want" ]; then
        echo "ok      $label: $got"
    else
        echo "failed  $label: exit $rc, levels \"$got\", want \"$want\""
        echo "$text" | tail -5
        failed=1
    fi
    ran=1
}

have() { command -v "$1" > /dev/null; }

if have qemu-aarch64 && have aarch64-linux-gnu-gcc; then
    if build arm aarch64-linux-gnu-gcc neon=-O3 "dotprod=-O3 -march=armv8.2-a+dotprod" \
        "i8mm=-O3 -march=armv8.2-a+dotprod+i8mm"; then
        check "aarch64, cortex-a53" "ref neon" qemu-aarch64 -cpu cortex-a53 "$out/arm"
        check "aarch64, cortex-a76" "ref neon dotprod" qemu-aarch64 -cpu cortex-a76 "$out/arm"
        check "aarch64, all" "ref neon dotprod i8mm" qemu-aarch64 -cpu max "$out/arm"
    else
        failed=1
    fi
else
    echo "skip    aarch64: no qemu-aarch64 or no aarch64-linux-gnu-gcc (Debian: qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross)"
fi
if have qemu-x86_64 && [ "$(uname -m)" = x86_64 ]; then
    avx2="-O3 -mavx2 -mfma -mf16c -mprfchw"
    avx512="-O3 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c -mprfchw"
    if build x86 gcc "avx2=$avx2" "avxvnni=$avx2 -mavxvnni" "avx512=$avx512" \
        "amx=$avx512 -mamx-tile -mamx-int8" \
        "amx_bf16=$avx512 -mf16c -mamx-tile -mamx-bf16" \
        "bf16=$avx512 -mavx512bf16"; then
        check "x86-64 without AVX" "ref" qemu-x86_64 -cpu Nehalem "$out/x86"
    else
        failed=1
    fi
else
    echo "skip    x86-64 of other ages: no qemu-x86_64 (Debian: qemu-user)"
fi
[ $ran = 1 ] || exit $((failed ? 1 : 77))
exit $failed
