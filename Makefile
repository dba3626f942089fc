# bgnn-convert. `make` lists the targets. The environment is made once, in .venv, by whatever target needs it.
SHELL := /bin/bash
VENV ?= .venv
KERAS_VENV ?= .venv-keras
PYTHON ?=
PIP_INSTALL := -m pip install -qq --disable-pip-version-check --cache-dir .cache/pip
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup kernels demo test lint bench bench-kernels wheels aarch64 cross-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(VENV)/.installed ## make the environment in .venv (does nothing when it is up to date)

# $(call make_venv,FOLDER): an environment of the first working Python 3.10-3.12, unless FOLDER has one already.
define make_venv
	if [ ! -x $(1)/bin/python ]; then \
	  for python in $(or $(PYTHON),python3.11 /usr/bin/python3.11 python3.12 python3.10 python3); do \
	    if "$$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; then \
	      found="$$python"; break; fi; done; \
	  if [ -z "$${found:-}" ]; then \
	    echo "make: no Python 3.10, 3.11 or 3.12 found; install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
	  if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "make: $$found cannot make an environment; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; fi; \
	  echo "setup: making $(1) with $$("$$found" --version) ($$found)"; \
	  "$$found" -m venv $(1) || exit 1; \
	fi
endef

$(VENV)/.installed: pyproject.toml Makefile
	@$(call make_venv,$(VENV))
	@echo "setup: installing the packages of pyproject.toml into $(VENV) (PyTorch alone is about 200 MB; minutes on first use)"
	@$(VENV)/bin/python $(PIP_INSTALL) --editable '.[dev,pyg,models]'
	@touch $@
	@echo "setup: $(VENV) is ready"

$(KERAS_VENV)/.installed: pyproject.toml Makefile
	@$(call make_venv,$(KERAS_VENV))
	@echo "setup: installing TensorFlow and larq beside PyTorch into $(KERAS_VENV) (about 3 GB on disk)"
	@$(KERAS_VENV)/bin/python $(PIP_INSTALL) --editable '.[dev,keras]'
	@touch $@

# The operators of --kernels bgnn, for this machine. Python finds the library in runtime_bench/lib.
kernels: ## build the project's own kernels and the TFLite delegate (needs g++)
	@if ! command -v g++ >/dev/null; then \
	  echo "make: no g++, so the kernels are not built and what needs them is skipped; on Debian: apt-get install g++" >&2; \
	else $(MAKE) -s -C runtime_bench/kernels/delegate; fi

demo: setup kernels ## convert the paper's models, run the files, print the report
	@$(VENV)/bin/python -m bgnn.converter.demo

test: setup kernels ## run the tests: the fast ones, then the slow ones
	@$(VENV)/bin/python -m pytest -q -n 2 -m "not slow"
	@$(VENV)/bin/python -m pytest -q -n 2 -m slow

lint: setup ## style (ruff) and types (mypy)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy -p bgnn

bench: setup kernels ## speed, size and memory of BF, RF and fp32 DGCNN, measured side by side
	@$(VENV)/bin/python -m bgnn.runtime_bench.bench_dgcnn

bench-kernels: setup kernels ## each kernel on each instruction set; Hamming k-NN beside FAISS and usearch
	@$(VENV)/bin/python -m bgnn.runtime_bench.bench_kernels

wheels: setup ## the bgnn-runtime wheels for devices, x86-64 and aarch64, into dist/
	@$(MAKE) -s -C runtime_bench/packaging wheels

aarch64: setup kernels ## the kernels and the delegate as a Cortex-A72 under qemu; instruction counts against the record
	@$(MAKE) -s -C runtime_bench/aarch64 test counts

cross-check: $(KERAS_VENV)/.installed ## compare our file with the paper's route (Keras, larq, LCE's converter)
	@TF_USE_LEGACY_KERAS=1 $(KERAS_VENV)/bin/python -m pytest -q -rs --show-capture=no tests/cross_check

clean: ## remove the environments and everything generated (the download cache .cache stays)
	rm -rf $(VENV) $(KERAS_VENV) build dist out src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
