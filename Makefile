# make demo | make check | make test | make test-all | make mutants | make isa | make bench | make gpu | make clean; `make demo ARGS=--fresh` passes options on
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The fast tests, file by file, on all cores; the slow ones kill processes by the clock and run alone.
# In our own order (tests/conftest.py): xdist's would leave the longest files to the end.
PARALLEL := -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo check test test-all mutants isa lint types bench gpu clean help

help:
	@echo "make demo      set up .venv and run the main job on the built-in data and model"
	@echo "make check     lint, types and the fast tests of what changed: the loop of work"
	@echo "make test      set up .venv and run lint, types and the fast tests"
	@echo "make test-all  the slow tests as well"
	@echo "make mutants   do the fast tests notice small deliberate bugs? (tests/mutants.py)"
	@echo "make isa       the fast tests of causal_core at three levels of instruction sets"
	@echo "make bench     the training step against its rivals, and against the peers where the extra"
	@echo "               is installed (benchmarks/README.md); ARGS and PEERS pass options on"
	@echo "make gpu       first contact with a GPU: does all of it work, how fast (benchmarks/gpu_contact.py)"
	@echo "make clean     remove .venv and caches (runs/ stays)"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "causal-ray needs Python 3.11 or newer; found: $$($(PYTHON) --version 2>&1). Use: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# A stamp is written after a successful install only, so a broken one is tried again.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing causal-ray into $(VENV) (a few minutes the first time) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing causal-ray with the dev extra into $(VENV) (a few minutes the first time) ..."
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	@$(BIN)/causal demo $(ARGS)

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	@$(BIN)/mypy

check: lint types
	@$(BIN)/python -m pytest -q $$($(BIN)/python -m tests.changed)

test: lint types
	@$(BIN)/python -m pytest $(PARALLEL)

test-all: lint types
	@$(BIN)/python -m pytest -m 'not gpu'

mutants: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.mutation $(ARGS)

isa: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.isa $(ARGS)

bench: $(VENV)/.installed
	@$(BIN)/python -m benchmarks.step $(ARGS)
	@if $(BIN)/python -m benchmarks.peers.installed; then $(BIN)/python -m benchmarks.peers $(PEERS); fi

gpu: $(VENV)/.installed-dev
	@$(BIN)/python -W ignore -m benchmarks.gpu_contact $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
