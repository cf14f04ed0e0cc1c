# SPDX-License-Identifier: Apache-2.0
# The short way to everything: `make help`. CMake does the work, in build/.
SHELL := /bin/bash
.DEFAULT_GOAL := all
.PHONY: all deps models pool demo test cross mpi bench evidence check fuzz asan tsan deb install format help

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
PACKAGES := gcc cmake ninja-build pkg-config libpcre2-dev libutf8proc-dev libjansson-dev liblzma-dev \
  libcurl4-openssl-dev libsqlite3-dev libseccomp-dev libmicrohttpd-dev \
  libcmocka-dev locales xz-utils unzip groff-base curl ca-certificates openssl
CHECK_PACKAGES := clang-format clang libclang-rt-14-dev g++ binutils python3 haproxy chromium
MPI_PACKAGES := libopenmpi-dev openmpi-bin
CROSS_PACKAGES := qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross
DATA_HOME := $(or $(XDG_DATA_HOME),$(HOME)/.local/share)
DEB_PACKAGES := debhelper dpkg-dev fakeroot lintian
MODEL_DIR := $(DATA_HOME)/crayon/models

all: deps ## build the library and the program: build/crayon
	@cmake --preset release -G Ninja > build.log 2>&1 || { cat build.log; exit 1; }
	@rm -f build.log
	@cmake --build build

deps: ## install the Debian packages that the build needs (asks sudo unless root)
	@tools/deps.sh $(PACKAGES)

models: deps ## fetch SmolLM2-135M-Instruct (Apache-2.0, 93 MB) into the user's model folder
	@tools/get_models.sh "$(MODEL_DIR)"

POOL := build/smollm2-135m-pool.gguf
pool: all models ## train a small pool for SmolLM2 on the tasks in data/, on the CPU, into build/
	@test -f "$(POOL)" || build/crayon pool train -m smollm2-135m-instruct-q4_1 --n 16 --rank 8 --rows 150 \
	  --epochs 2 --step-tokens 4096 --resume --name smollm2-135m-pool -o "$(POOL)" data/train.jsonl.xz
	@echo "$(POOL)"

demo: all models ## fit a small model to a task, then ask a bigger one: two minutes
	@demo/demo.sh

test: all ## unit, kernel, golden and end-to-end tests
	@ctest --test-dir build --output-on-failure

cross: deps ## kernel tests on other processors, under QEMU: aarch64, an x86-64 without AVX
	@tools/deps.sh $(CROSS_PACKAGES)
	@tests/cross.sh

mpi: deps ## training in several processes: builds with MPI in build/mpi and compares with one process
	@tools/deps.sh $(MPI_PACKAGES)
	@cmake --preset mpi > /dev/null && cmake --build build/mpi --target crayon test_peers && \
	  ctest --test-dir build/mpi --output-on-failure -R '^(test_peers|e2e_mpi)$$'

.PHONY: container
container: ## follow packaging/Containerfile without a container engine, start the image and ask it (root)
	@tools/deps.sh debootstrap
	@tests/container.sh build/container

.PHONY: clients
clients: all ## the official clients against the server (Python, in build/clients)
	@tools/deps.sh python3-venv
	@test -x build/clients/bin/pytest || (python3 -m venv build/clients && \
	  build/clients/bin/pip install -q -r tests/clients/requirements.txt)
	@build/clients/bin/pytest -q -p no:cacheprovider tests/clients

.PHONY: soak
soak: all ## the server under random requests and faults for SECONDS (default 1800), each answer against a cold run
	@tools/deps.sh python3 openssl
	@tests/soak/soak.py --crayon $(or $(CRAYON),build/crayon) --seconds $(or $(SECONDS),1800)

bench: all ## measure crayon, and the peers where they are installed
	@bench/run.sh

evidence: ## tables and charts of docs/evidence.md from the raw results; TASKS=DIR and a GPU: missing results first
	@bench/evidence/run.sh "$(TASKS)"

check: all ## dependencies between folders, symbols, headers, style, licences, core build
	@tools/deps.sh $(CHECK_PACKAGES)
	@tools/check.sh

asan: deps ## all tests under AddressSanitizer and UBSan
	@cmake --preset asan > /dev/null && cmake --build build/asan && \
	  ctest --test-dir build/asan --output-on-failure -LE slow

tsan: deps ## thread tests under ThreadSanitizer
	@cmake --preset tsan > /dev/null && cmake --build build/tsan && \
	  ctest --test-dir build/tsan --output-on-failure -L threads

fuzz: deps ## run every fuzz target for FUZZ_SECONDS (default 60) each, or FUZZ_RUNS executions; TARGETS="fuzz_http ..."
	@tools/deps.sh $(CHECK_PACKAGES)
	@cmake --preset fuzz > /dev/null && cmake --build build/fuzz && \
	  tests/fuzz/run.sh build/fuzz $(or $(FUZZ_SECONDS),60) $(or $(FUZZ_RUNS),0) $(TARGETS)

deb: all ## make a Debian package in build/ and have lintian judge it
	@tools/deps.sh $(DEB_PACKAGES)
	@tools/deb.sh

install: all ## install program, library, header, pkg-config file, man page (PREFIX=/usr/local)
	@cmake --install build --prefix $(or $(PREFIX),/usr/local)

format: ## let .clang-format decide
	@clang-format -i include/*.h src/*/*.[ch] cli/*.[ch] tests/*.h tests/*/*.[ch] examples/*.c

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile
