#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# House rules that a compiler does not know. Each prints what it found; any finding fails.
# Needs a release build in build/ (make check makes it).
set -u
cd "$(dirname "$0")/.."
failed=0
fail() {
    echo "check: $1" >&2
    failed=1
}
code=$(git ls-files --cached --others --exclude-standard 'include/*.h' 'src/*.c' 'src/*.h' 'cli/*.c' \
    'cli/*.h' 'tests/*.c' 'tests/*.h' 'examples/*.c' 'bench/*.c')

# 1. Folders depend one way only. A file of FOLDER may include headers of the folders listed.
allowed() {
    case $1 in
    base) echo base ;;
    kernels) echo base kernels ;;
    model) echo base kernels model ;;
    adapt) echo base kernels model adapt ;;
    tune) echo base kernels model adapt tune ;;
    route) echo base kernels model adapt route ;;
    serve) echo base kernels model adapt route serve ;;
    cuda) echo base kernels model adapt tune cuda ;;
    esac
}
for dir in src/*/; do
    folder=$(basename "$dir")
    ok=$(allowed "$folder" | tr ' ' '|')
    bad=$(grep -nE '^ *# *include "' "$dir"*.[ch] 2>/dev/null | grep -vE "\"(($ok)/|crayon\.h\")" || true)
    [ -z "$bad" ] || fail "$folder may include only $(allowed "$folder"):
$bad"
done

# 2. Every global symbol of the library starts with cr_; the shared library exports only crayon.h's.
bad=$(nm -g --defined-only build/libcrayon.a 2>/dev/null | awk 'NF == 3 && $3 !~ /^cr_/ {print $3}' | sort -u)
[ -z "$bad" ] || fail "symbols without the prefix cr_: $bad"
if [ -f build/libcrayon.so ]; then
    exported=$(nm -D --defined-only build/libcrayon.so | awk '{print $3}' | sort -u)
    declared=$(grep -oE '\bcr_[a-z0-9_]+\(' include/crayon.h | tr -d '(' | sort -u)
    bad=$(comm -23 <(echo "$exported") <(echo "$declared"))
    [ -z "$bad" ] || fail "exported but not in crayon.h: $bad"
    bad=$(comm -13 <(echo "$exported") <(grep 'CR_API' -A 2 include/crayon.h | grep -oE '\bcr_[a-z0-9_]+\(' |
        tr -d '(' | sort -u))
    [ -z "$bad" ] || fail "in crayon.h but not exported: $bad"
else
    fail "build/libcrayon.so is missing: run make"
fi

# 3. Banned functions; raw allocation outside mem.c; printing in the library.
bad=$(grep -nE '\b(strcpy|strcat|sprintf|vsprintf|atoi|atol|atof|strtok|gets)\(' $code)
[ -z "$bad" ] || fail "banned function:
$bad"
bad=$(grep -nE '\b(malloc|calloc|realloc|free|strdup|strndup|asprintf)\(' $(echo "$code" | grep -E '^(src|cli)/') |
    grep -v '^src/base/mem.c:')
[ -z "$bad" ] || fail "raw allocation outside base/mem.c:
$bad"
bad=$(grep -nE '\b(printf|puts|putchar|perror|exit|abort)\(|\bstderr\b|\bstdout\b' $(echo "$code" | grep '^src/') |
    grep -vE 'format\(printf' )
[ -z "$bad" ] || fail "the library prints or exits:
$bad"

bad=$(grep -nE '\bdlopen\(' $code | grep -vE '^(src/base/lazy|src/cuda/nccl|tests/.*)\.c:')
[ -z "$bad" ] || fail "a library is opened outside base/lazy.c:
$bad"

# 4. Text: SPDX line, no tabs, no trailing space, final newline, no invisible characters.
for f in $code; do
    head -n 2 "$f" | grep -q 'SPDX-License-Identifier: Apache-2.0' || fail "$f: no SPDX line"
done
text=$(git ls-files --cached --others --exclude-standard '*.c' '*.h' '*.md' '*.sh' '*.py' '*.txt' | grep -vE '^tests/(data|golden|e2e)/')
bad=$(grep -nP '[ \t]+$' $text | head -5)
[ -z "$bad" ] || fail "trailing space:
$bad"
bad=$(grep -nP '\t' $code | head -5)
[ -z "$bad" ] || fail "tab:
$bad"
bad=$(grep -nP '[\x{200b}-\x{200f}\x{202a}-\x{202e}\x{2060}\x{feff}]' $code | head -5)
[ -z "$bad" ] || fail "invisible character:
$bad"
for f in $text; do
    [ -z "$(tail -c 1 "$f")" ] || fail "$f: no newline at the end"
done
bad=$(grep -nE '\b(TODO|FIXME|XXX)\b' $code | head -5)
[ -z "$bad" ] || fail "unfinished:
$bad"

# 5. Layout by clang-format.
if command -v clang-format > /dev/null; then
    bad=$(clang-format --dry-run $code 2>&1 | grep -E 'warning' | cut -d: -f1 | sort -u)
    [ -z "$bad" ] || fail "not formatted (make format): $bad"
else
    fail "clang-format is missing"
fi

# 6. The public header compiles alone, as C11 and as C++; so does every internal header as C11, but
#    for those that a kernel level includes with its own vector types.
for h in include/crayon.h $(echo "$code" | grep -E '^(src|cli)/.*\.h$' | grep -vE '^src/(cuda/|kernels/(attn_q8|avx2_body|blocks|low|many|neon_body|packed|rows16|sums16|tile16|vector)\.h)'); do
    cc -std=c11 -D_GNU_SOURCE -DCRAYON_JSON -Wall -Wextra -Werror -Iinclude -Isrc -Icli -fsyntax-only -x c "$h" 2> /tmp/crayon-check.$$ ||
        fail "$h does not compile alone: $(head -3 /tmp/crayon-check.$$)"
done
c++ -Wall -Wextra -Werror -Iinclude -fsyntax-only -x c++ include/crayon.h || fail "crayon.h is not C++"
rm -f /tmp/crayon-check.$$

# 7. The core builds with nothing but libc, libm, pthreads, PCRE2 and utf8proc, without warnings.
cmake --preset core -DCRAYON_WERROR=ON > /dev/null && cmake --build build/core > build/core.log 2>&1 ||
    fail "the core does not build alone: $(grep -E 'error' build/core.log | head -5)"

# 8. Options of libcurl have the types that its header wants: CRAYON_LAZY goes past that check.
for f in src/route/fetch.c src/route/upstream_try.c; do
    cc -std=c11 -O1 -D_GNU_SOURCE -DCRAYON_JSON -Wall -Wextra -Werror -Iinclude -Isrc -c -o /dev/null "$f" ||
        fail "$f does not compile with libcurl linked"
done

# 9. The example builds against the installed library.
stage=$(mktemp -d)
if cmake --install build --prefix "$stage" > /dev/null; then
    lib=$(dirname "$(find "$stage" -name crayon.pc)")
    PKG_CONFIG_PATH=$lib cc -std=c11 -Wall -Wextra -Werror examples/generate.c -o "$stage/generate" \
        $(PKG_CONFIG_PATH=$lib pkg-config --define-variable=prefix="$stage" --cflags --libs crayon) &&
        LD_LIBRARY_PATH=$(dirname "$lib") "$stage/generate" models/crayon-15m-q8_0.gguf "The sea" > "$stage/out" &&
        [ -s "$stage/out" ] || fail "examples/generate.c does not build or run against the installed library"
else
    fail "make install fails"
fi
rm -rf "$stage"

# 10. Attacks 21 to 60 have a row each in docs/security.md, and the tests that it names exist.
for n in $(seq 21 60); do
    grep -q "^| $n |" docs/security.md || fail "docs/security.md: no row for attack $n"
done
for t in $(grep -E '^\| [0-9]' docs/security.md | sed 's/.*| \(.*\) |$/\1/' | grep -oE '`[a-z_0-9]+`' | tr -d '`' | sort -u); do
    grep -q "^static void $t(void" tests/unit/*.c || [ -f "tests/e2e/$t.sh" ] ||
        fail "docs/security.md: there is no test $t"
done

# 11. The repository stays small.
bytes=$(git ls-files -z --cached --others --exclude-standard | xargs -0 du -cb | tail -n 1 | cut -f1)
[ "$bytes" -lt 60000000 ] || fail "the repository holds $bytes bytes, limit 60000000"

[ $failed = 0 ] && echo "check: all rules hold"
exit $failed
