#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# make bench: the kernel bench of the test program, then crayon beside its peers (bench/bench.py says
# which environment variables name them).
set -eu
cd "$(dirname "$0")/.."
build/tests/test_kernels --bench
python3 bench/bench.py "$@"
