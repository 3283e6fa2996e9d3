# Two commands do everything on a fresh machine with Python 3.11 or newer:
#   make demo   environment, install, the whole job on a real clip
#   make test   environment, install, lint, types, import contracts, tests
# GPU=a100 names the card that the demo is for, which may be absent.
# PY=/path/to/python uses an environment of yours instead; nothing is installed into it.

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/installed
EXTRAS := triton,cuda,tune,plans,demo,dev
WORKERS ?= 2
# Most of their time is compilation.
GPU_WORKERS ?= 6
GPU ?= h100

DEMO_CLIP = $(PY) -m examples.clip --gpu $(GPU)
DEMO_TUNE = $(PY) -m autotune --gpu $(GPU) --workload clip --budget 8
BENCH = $(PY) -m benchmarks attention
PYTEST = $(PY) -m pytest

ifneq ($(origin PY),file)
STAMP :=
endif

# The first interpreter that is new enough for the code, old enough for the pinned wheels, and able
# to make environments.
PYTHONS := python3 python3.13 python3.12 python3.14 python3.11
FITS := import ensurepip, sys, venv; assert (3, 11) <= sys.version_info < (3, 15); print(sys.executable)
PYTHON ?= $(shell for p in $(PYTHONS); do $$p -c '$(FITS)' 2>/dev/null && break; done)
PIP = $(PY) -m pip --disable-pip-version-check install -q -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help env demo test lint types contracts tests nightly gpu-test bench clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(STAMP)  ## describe, tune, build, run and check attention on a real clip
	$(DEMO_CLIP)
	$(DEMO_TUNE)

test: lint types contracts tests  ## everything that must hold before a change goes in

lint: $(STAMP)  ## ruff: rules and layout
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(STAMP)  ## mypy --strict over the package
	$(PY) -m mypy -p kdsl

contracts: $(STAMP)  ## imports run downwards
	$(PY) -c 'from importlinter.cli import lint_imports_command as main; main()' --no-logo

tests: $(STAMP)  ## the test suite on CPU, and on the GPU where there is one
	$(PYTEST) -n $(WORKERS)

nightly: $(STAMP)  ## many more examples, and the tests that take minutes
	HYPOTHESIS_PROFILE=nightly $(PYTEST) -n $(WORKERS)

gpu-test: $(STAMP)  ## the tests that need a CUDA GPU, and the record of their run
	$(PYTEST) -m "gpu and not alone" -n $(GPU_WORKERS) -p benchmarks.gpu_record
	$(PYTEST) -m "gpu and alone" -p benchmarks.gpu_record --record-add

bench: $(STAMP)  ## measure against the peers and append the rows
	$(BENCH)

clean:  ## remove the environment and everything built or cached
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	  .import_linter_cache out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

env: $(STAMP)  ## the environment alone

# Without a GPU the CPU build of PyTorch does, and leaves out 2 GB of CUDA libraries: pip takes it
# where this machine's settings lead to one, else uv from PyTorch's own index. The last resort is the
# CUDA build.
$(VENV)/installed: pyproject.toml setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python from 3.11 to 3.14 that can make environments" \
	  "(tried $(PYTHONS)). Install one (Debian: apt install python3 python3-venv) or name it:" \
	  "make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "environment: $(VENV) from $(PYTHON); this takes some minutes the first time"
	@"$(PYTHON)" -m venv $(VENV)
	@$(PIP) setuptools
	@nvidia-smi -L >/dev/null 2>&1 || $(PIP) torch==2.13.0+cpu 2>/dev/null \
	  || { $(PIP) uv && $(VENV)/bin/uv pip install -q --python $(PY) --torch-backend cpu \
	       -c constraints.txt torch==2.13.0 2>/dev/null; } \
	  || echo "no CPU build of PyTorch to be had: installing the CUDA build, 2.8 GB"
	@$(PIP) --no-build-isolation -e ".[$(EXTRAS)]"
	@touch $@
