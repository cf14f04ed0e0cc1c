# Attacks 48 and 60, which the sources answer: keys are compared in equal time, other machines are refused clearly.
command -v clang > /dev/null || { echo "skip: clang is not installed"; exit 77; }
root=$HERE/../..

echo "48: no branch and no address depends on the digest of a key"
if clang -std=c11 -D_GNU_SOURCE -O1 -g -fsanitize=memory -mllvm -msan-eager-checks=0 -I "$root/src" -I "$root/include" \
    "$root/src/base/sha256.c" "$root/tests/tools/secret.c" -o secret 2> err; then
    ./secret 2> err && echo "ours: nothing found"
    ./secret plain 2> err || echo "memcmp: $(grep -o 'use-of-uninitialized-value' err | head -1)"
else
    cat err >&2
fi

echo "60: big-endian and 32-bit machines"
for target in s390x-linux-gnu powerpc64-linux-gnu i386-linux-gnu armv7-linux-gnueabi mips-linux-gnu x86_64-linux-gnu aarch64-linux-gnu; do
    clang --target=$target -std=c11 -fsyntax-only -I "$root/src" -I "$root/include" "$root/src/base/bytes.c" > err 2>&1
    echo "$target: $(grep -o 'needs a[^:"]*' err | sort -u | paste -sd,)"
done
