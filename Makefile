# bgnn-convert. `make` lists the targets. The environment is made once, in .venv, by whatever target needs it.
SHELL := /bin/bash
VENV ?= .venv
LCE_VENV ?= .venv-lce
KERAS_VENV ?= .venv-keras
PYTHON ?=
PIP_INSTALL := -m pip install -qq --disable-pip-version-check --cache-dir .cache/pip
export OMP_NUM_THREADS ?= 1
PARALLEL := -j$(shell nproc)

.DEFAULT_GOAL := help
.PHONY: help setup kernels demo demo-graph test lint bench bench-kernels bench-graphs bench-trained check-files record-files out/files.jsonl interpreters fuzz wheels aarch64 a72 cross-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(VENV)/.installed $(LCE_VENV)/.installed ## make the environments .venv and .venv-lce (does nothing when they are up to date)

# $(call make_venv,FOLDER): an environment of the first working Python 3.11-3.12, unless FOLDER has one already.
define make_venv
	if [ ! -x $(1)/bin/python ]; then \
	  for python in $(or $(PYTHON),python3.11 /usr/bin/python3.11 python3.12 python3); do \
	    if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then \
	      found="$$python"; break; fi; done; \
	  if [ -z "$${found:-}" ]; then \
	    echo "make: no Python 3.11 or 3.12 found; install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
	  if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "make: $$found cannot make an environment; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; fi; \
	  echo "setup: making $(1) with $$("$$found" --version) ($$found)"; \
	  "$$found" -m venv $(1) || exit 1; \
	fi
endef

$(VENV)/.installed: pyproject.toml runtime_bench/toolchain/packaging/pyproject.toml Makefile
	@$(call make_venv,$(VENV))
	@echo "setup: installing the packages of pyproject.toml into $(VENV) (PyTorch alone is about 200 MB; minutes on first use)"
	@$(VENV)/bin/python $(PIP_INSTALL) --editable runtime_bench/toolchain/packaging --editable '.[dev,pyg,models]'
	@touch $@
	@echo "setup: $(VENV) is ready"

# What pyproject.toml's extra `lce` names and nothing else: it needs numpy < 2, and wants no PyTorch.
lce_packages = import importlib.metadata as m; print(*(r.split(";")[0] for r in m.requires("bgnn-convert") if r.endswith("\"lce\"")))
$(LCE_VENV)/.installed: $(VENV)/.installed
ifeq ($(shell uname -m),x86_64)
	@$(call make_venv,$(LCE_VENV))
	@echo "setup: installing Larq Compute Engine's interpreter, to compare with, into $(LCE_VENV) (80 MB)"
	@$(LCE_VENV)/bin/python $(PIP_INSTALL) $$($(VENV)/bin/python -c '$(lce_packages)')
	@touch $@
else
	@echo "setup: Larq Compute Engine has no wheel for this machine: what compares with its interpreter is skipped"
endif

$(KERAS_VENV)/.installed: tests/cross_check/requirements.txt
	@$(call make_venv,$(KERAS_VENV))
	@echo "setup: installing TensorFlow and larq into $(KERAS_VENV) (about 2 GB on disk)"
	@$(KERAS_VENV)/bin/python $(PIP_INSTALL) -r $<
	@touch $@

# What runs binary files, for this machine. Python finds the library in runtime_bench/runtime/lib.
kernels: ## build the project's own kernels and the TFLite delegate (needs g++)
	@if ! command -v g++ >/dev/null; then \
	  echo "make: no g++, which builds the kernels that binary files run with; on Debian: apt-get install g++" >&2; exit 1; fi
	@$(MAKE) -s $(PARALLEL) -C runtime_bench/kernels/delegate
	@$(MAKE) -s $(PARALLEL) -C runtime_bench/kernels/ort

demo: $(VENV)/.installed kernels ## convert the paper's models, run the files, print the report
	@$(VENV)/bin/python -m bgnn.converter.demo

demo-graph: $(VENV)/.installed kernels ## cut a network at its aggregations and compute all nodes of a graph from Parquet
	@$(VENV)/bin/python -m bgnn.converter.demo_graph

test: setup kernels ## run the tests: the fast ones, then the slow ones
	@$(VENV)/bin/python -m pytest -q -n 2 --dist worksteal -m "not slow"
	@$(VENV)/bin/python -m pytest -q -n 2 --dist worksteal -m slow

lint: $(VENV)/.installed ## style (ruff) and types (mypy)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy -p bgnn

# The papers' tables, and Hamming k-NN alone. Every other table by its name: make bench TABLES=graph-networks
TABLES ?= bgnn-fig4 bgnn-table4 bgnn-size-memory bgnn-table5 bgnn-table6 bgnn-table7 bgnn-all dq-table4 dq-table6 dq-table10 knn
bench: setup kernels .cache/bench/.installed ## the papers' tables, measured in one run (TABLES="knn"; ARGS="--rounds 25 --markdown FILE")
	@PYTHONPATH=$(CURDIR)/.cache/bench $(VENV)/bin/python -W ignore -m bgnn.runtime_bench.bench.cli table $(TABLES) --json out/bench.jsonl $(ARGS)

bench-kernels: ## our kernels by instruction set, beside FAISS, usearch and what memory allows
	@$(MAKE) -s bench TABLES="kernels knn aggregate segments"

bench-graphs: ## INT8 and binary graph networks: layers and whole networks (ARGS="--data DIR": raw files of Cora, Citeseer)
	@$(MAKE) -s bench TABLES="dq-table4 dq-table10 graph-networks"

bench-trained: ## networks trained here on Cora, Citeseer and shapes, PyTorch beside the files: accuracies, codes
	@$(MAKE) -s bench TABLES="accuracy calibrated-clouds"

# What Hamming k-NN is compared with. Beside the environment: nothing else needs them (numkong is usearch's).
.cache/bench/.installed: $(VENV)/.installed
	@$(VENV)/bin/python $(PIP_INSTALL) --upgrade --no-deps --target $(@D) faiss-cpu==1.15.1 usearch==2.26.6 numkong==7.8.6
	@touch $@

# Two files of trained models, their records, and what they may not get worse than. `make record-files` accepts them.
out/files.jsonl: setup kernels
	@mkdir -p out/files
	@$(VENV)/bin/bgnn-convert models/trained/bf2_shapes.pt --target lce-arm64 --kernels bgnn -o out/files/bf2_shapes.tflite >/dev/null
	@$(VENV)/bin/bgnn-convert models/trained/cora_gcn_dq8.pt --target onnx-int8-x86 -o out/files/cora_gcn_dq8.onnx >/dev/null
	@$(VENV)/bin/bgnn-bench run out/files/bf2_shapes.tflite out/files/cora_gcn_dq8.onnx --rounds 1 --json $@ \
	  --candidates "LiteRT + ours" "ONNX Runtime" >/dev/null

check-files: out/files.jsonl ## sizes, operators, shares and verification of two trained models' files against .ci/baseline.jsonl
	@$(VENV)/bin/bgnn-bench check $< --baseline .ci/baseline.jsonl

# Of memory and time a baseline says nothing: they are the machine's.
counted = import json, sys; rows = [json.loads(line) for line in sys.stdin]; \
  [print(json.dumps({**row, "samples": {"file_bytes": row["samples"]["file_bytes"]}})) for row in rows]
record-files: out/files.jsonl
	@$(VENV)/bin/python -c '$(counted)' <$< >.ci/baseline.jsonl

interpreters: setup kernels ## the same files in five stock TFLite interpreters, each in its own environment (about 2.5 GB)
	@$(VENV)/bin/python -m bgnn.runtime_bench.bench.stock_interpreters

fuzz: setup kernels ## changed files through LiteRT and ONNX Runtime with our libraries, under sanitizers (COUNT=10000 SEED=1)
	@$(MAKE) -s -C tests/runtime_bench/kernels/delegate/fuzz files onnx VENV=$(abspath $(VENV))

wheels: setup ## the wheels into dist/: bgnn-convert, and bgnn-runtime for devices, x86-64 and aarch64
	@$(MAKE) -s -C runtime_bench/toolchain/packaging wheels PARALLEL=$(PARALLEL) VENV=$(abspath $(VENV))

aarch64: setup kernels ## the kernels and the delegate as a Cortex-A72 under qemu; instruction counts against the record
	@$(MAKE) -s $(PARALLEL) --output-sync=line -C runtime_bench/toolchain/aarch64 test counts VENV=$(abspath $(VENV))

a72: setup kernels ## MODELLED times on a Cortex-A72 at 1.5 GHz, beside the paper's profile
	@$(MAKE) -s -C runtime_bench/toolchain/aarch64 model VENV=$(abspath $(VENV))

cross-check: setup kernels $(KERAS_VENV)/.installed ## compare our file with the paper's route (Keras, larq, LCE's converter)
	@BGNN_KERAS_PYTHON=$(abspath $(KERAS_VENV))/bin/python $(VENV)/bin/python -m pytest -q -rs --show-capture=no tests/cross_check

clean: ## remove the environments and everything generated (the download cache .cache stays)
	rm -rf $(VENV) $(LCE_VENV) $(KERAS_VENV) build dist out src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
