# The same five commands for everyone: make demo test lint bench docs. Continuous integration calls them too.
# Each one prepares .venv as far as it needs and does nothing twice: the files .venv/.done-* are the stamps.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt $(PIP_FLAGS)
NATIVE := CMakeLists.txt $(shell find native -type f 2>/dev/null)
CODE   := src tests benchmarks $(wildcard examples)

.PHONY: help demo test test-sanitize test-aarch64 lint format bench docs build clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    the same text, plain and speculative, from a real model; nothing else is needed first"
	@echo "make test    all tests"
	@echo "make test-sanitize  the tests of the native part, its memory accesses and arithmetic checked while they run"
	@echo "make test-aarch64   the kernels for AArch64, cross-compiled and emulated: each gives the bits of the portable one"
	@echo "make lint    ruff, mypy --strict, sizes and layers are checked by the tests"
	@echo "make format  let ruff put the code into its form"
	@echo "make bench   decoding speed on this machine, plain and speculative interleaved"
	@echo "make docs    write the command line reference again from the program"
	@echo "make build   compile the engine and install draftsmith into .venv"
	@echo "make clean   remove what was built, .venv included"

demo: $(VENV)/.done-core
	$(BIN)/python examples/demo.py

# Some tests run real weights; without the network they are skipped, and say so.
test: $(VENV)/.done-core $(VENV)/.done-dev
	-@$(BIN)/draftsmith models pull smollm2-135m-instruct
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

# An engine of its own in an environment of its own, which borrows everything else from $(VENV): a line in a .pth file adds
# a folder to the path without following the .pth files in it, so the engine that is installed there is not found.
# The sanitizers' library must be in the process before Python is; Python itself frees little at its end, hence no leaks.
SANITIZE  := build/sanitize
SANITIZED := $(CURDIR)/$(SANITIZE)/venv
SANITIZE_TESTS ?= tests/model tests/quant tests/checkpoint tests/exactness tests/engine/test_kv_dtype.py

test-sanitize: $(SANITIZE)/.done
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	  $(SANITIZED)/bin/python -m pytest -p no:cacheprovider $(PYTEST_FLAGS) $(SANITIZE_TESTS)

$(SANITIZE)/.done: $(VENV)/.done-core $(VENV)/.done-dev $(NATIVE)
	@echo "compiling the engine with sanitizers into $(SANITIZE)"
	@$(BIN)/python -m venv $(SANITIZED)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(SANITIZED)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	@PATH=$(CURDIR)/$(BIN):$$PATH $(SANITIZED)/bin/python -m pip --disable-pip-version-check install -qq --ignore-installed --no-deps \
	  --no-build-isolation -C build-dir=$(SANITIZE)/build -C cmake.define.DRAFTSMITH_SANITIZE=ON -e .
	@$(SANITIZED)/bin/python -c 'import importlib.util as u, sys; found = u.find_spec("draftsmith.model").submodule_search_locations; \
	  sys.exit(not any(p.startswith(sys.prefix) for p in found) and f"the tests would run the engine in {found}")'
	@touch $@

# The kernels alone, as a program for AArch64 and as one for this machine: in each of them all sets of kernels must give the
# bits of the portable one, and the portable ones of the two machines must agree. Optimisation as in CMakeLists.txt.
AARCH64_CXX ?= aarch64-linux-gnu-g++
AARCH64_RUN ?= qemu-aarch64
AARCH64     := build/aarch64
KERNEL_FLAGS := -std=c++20 -O3 -ffp-contract=off -fno-math-errno -Wall -Wextra -Werror -Wno-psabi -Inative
KERNEL_PARTS := tests/native/kernels_agree.cpp native/dispatch.cpp native/pack.cpp native/kernels_portable.cpp

test-aarch64:
	@command -v $(AARCH64_CXX) >/dev/null || { echo "make test-aarch64 needs a cross compiler, $(AARCH64_CXX), which is not installed; on Debian: apt-get install g++-aarch64-linux-gnu"; exit 1; }
	@command -v $(AARCH64_RUN) >/dev/null || { echo "make test-aarch64 needs an emulator, $(AARCH64_RUN), which is not installed; on Debian: apt-get install qemu-user"; exit 1; }
	@$(MAKE) --no-print-directory $(AARCH64)/agree $(AARCH64)/agree-here
	$(AARCH64_RUN) -cpu max $(AARCH64)/agree neon > $(AARCH64)/digests
	$(AARCH64)/agree-here > $(AARCH64)/digests-here
	@diff $(AARCH64)/digests-here $(AARCH64)/digests && echo "and the two processors agree, kernel by kernel"

$(AARCH64)/agree: $(KERNEL_PARTS) $(NATIVE)
	@mkdir -p $(AARCH64)
	$(AARCH64_CXX) $(KERNEL_FLAGS) -march=armv8.2-a+dotprod -c native/kernels_neon.cpp -o $(AARCH64)/kernels_neon.o
	$(AARCH64_CXX) $(KERNEL_FLAGS) -static $(KERNEL_PARTS) $(AARCH64)/kernels_neon.o -o $@

# What this machine's own sets are compared with is tested from Python; here the portable one is enough.
$(AARCH64)/agree-here: $(KERNEL_PARTS) $(NATIVE)
	@mkdir -p $(AARCH64)
	$(CXX) $(KERNEL_FLAGS) -DDRAFTSMITH_PORTABLE_ONLY $(KERNEL_PARTS) -o $@

lint: $(VENV)/.done-core $(VENV)/.done-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CODE)

format: $(VENV)/.done-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.done-core
	$(BIN)/python -m benchmarks.decode $(BENCH_FLAGS)

docs: $(VENV)/.done-core
	$(BIN)/python -m draftsmith.cli.reference > docs/cli.md.new
	mv docs/cli.md.new docs/cli.md

build: $(VENV)/.done-core

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "$(PYTHON) is Python %d.%d; draftsmith needs 3.11 or newer, name one with make PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# The build tools live in .venv, so that compiling again after an edit takes seconds (no isolated build environment).
$(VENV)/.done-tools: pyproject.toml constraints.txt | $(BIN)/python
	@echo "fetching the build tools into $(VENV) (once)"
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	  > $(VENV)/build-requires.txt
	@$(PIP) -r $(VENV)/build-requires.txt cmake ninja
	@touch $@

$(VENV)/.done-core: $(VENV)/.done-tools $(NATIVE)
	@echo "compiling the engine and installing draftsmith into $(VENV)"
	@$(PIP) --no-build-isolation -e .
	@touch $@

$(VENV)/.done-dev: $(VENV)/.done-tools | $(VENV)/.done-core
	@echo "fetching what tests and linters need, PyTorch among it (once)"
	@$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@
