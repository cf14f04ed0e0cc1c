#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes a Debian package from the release build in build/ and has lintian judge it. Usage: deb.sh [OUTPUT_DIR]
set -eu
cd "$(dirname "$0")/.."
source=$PWD
out=$(realpath "${1:-build}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/crayon"
cp -r packaging/debian "$work/crayon/debian"
mkdir -p "$work/crayon/debian/source"
echo "3.0 (native)" > "$work/crayon/debian/source/format"
version=$(sed -n 's/^project(crayon VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
[ "$version" = "$(dpkg-parsechangelog -l packaging/debian/changelog -S Version)" ] ||
    { echo "deb: packaging/debian/changelog is not of version $version" >&2; exit 1; }
cd "$work/crayon"
CRAYON_SOURCE=$source CRAYON_BUILD=$source/build fakeroot debian/rules binary > "$work/log" 2>&1 ||
    { cat "$work/log" >&2; exit 1; }
cp "$work"/crayon_*.deb "$out/"
deb=$(basename "$(ls "$work"/crayon_"$version"_*.deb)")
cd "$out"
lintian --fail-on error,warning --tag-display-limit 0 --allow-root "$deb"
echo "$out/$deb"
