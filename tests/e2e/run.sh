#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# run.sh PROGRAM CASE.sh: runs a case in an empty folder of its own, with an empty home, and compares
# what it prints with CASE.out and its exit code with CASE.exit. UPDATE=1 rewrites CASE.out.
#
# A case sees: $CRAYON (the program), $MODELS (the repository's models), $DATA (its data), $HERE (this
# folder). It prints to standard output what is to be compared; standard error is shown on failure.
set -u
program=$(realpath "$1")
case=$(realpath "$2")
name=${case%.sh}
HERE=$(dirname "$case")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CRAYON=$program HERE MODELS=$HERE/../../models DATA=$HERE/../../data
export HOME=$work/home LC_ALL=C TERM=dumb
unset XDG_DATA_HOME XDG_STATE_HOME XDG_CONFIG_HOME XDG_CACHE_HOME XDG_RUNTIME_DIR NO_COLOR CLICOLOR_FORCE CR_CPU
for v in $(compgen -e | grep '^CRAYON_'); do unset "$v"; done
mkdir "$HOME" "$work/cwd"
cd "$work/cwd" || exit 1
bash "$case" > "$work/out" 2> "$work/err" < /dev/null
code=$?
[ $code = 77 ] && { cat "$work/out" "$work/err"; exit 77; }
want=0
[ -f "$name.exit" ] && want=$(cat "$name.exit")
failed=0
[ "${UPDATE:-0}" = 1 ] && cp "$work/out" "$name.out"
if [ "$code" != "$want" ]; then
    echo "$(basename "$name"): exit code $code, want $want"
    failed=1
fi
if ! diff -u "$name.out" "$work/out"; then
    echo "$(basename "$name"): the output differs"
    failed=1
fi
[ $failed = 0 ] || { echo "standard error was:"; cat "$work/err"; }
exit $failed
