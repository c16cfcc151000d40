# The same five commands for everyone: make demo test lint bench docs. Continuous integration calls them too.
# Each one prepares .venv as far as it needs and does nothing twice: the files .venv/.done-* are the stamps.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt $(PIP_FLAGS)
NATIVE := CMakeLists.txt $(shell find native -type f 2>/dev/null)
CODE   := src tests benchmarks $(wildcard examples)

.PHONY: help demo test test-sanitize lint format bench docs build clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    the same text, plain and speculative, from a real model; nothing else is needed first"
	@echo "make test    all tests"
	@echo "make test-sanitize  the tests of the native part, its memory accesses and arithmetic checked while they run"
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
