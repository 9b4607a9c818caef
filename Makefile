# Needs Python 3.11 or newer, git and make; everything else is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
# `make train ARGS="storm env.game=Pong"`
ARGS ?= quickstart
# Processes that share the tests.
WORKERS ?= 2
# Further arguments for pytest, as in `make test PYTEST_ARGS="-k replay"`
PYTEST_ARGS ?=

# The oldest PyTorch that setup.cfg allows, and what depends on its compiler.
OLDEST_VENV ?= .venv-oldest
OLDEST_TORCH := $(shell sed -n 's/^ *torch>=\([0-9.]*\),.*/\1/p' setup.cfg)
COMPILED_TESTS := $(addprefix tests/,nn/test_compilation.py nn/test_cuda_graphs.py nn/test_normalize.py storm/test_learner.py)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
REQUIREMENTS := setup.cfg setup.py pyproject.toml
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help train test test-all test-oldest lint clean

help:
	@echo "make train [ARGS=quickstart]  install into $(VENV) and run 'stormlit train ARGS'"
	@echo "make test                     lint, and the tests that a change should pass"
	@echo "make test-all                 lint, and every test, the slow ones too: before a release"
	@echo "make test-oldest              the tests of compiled functions with PyTorch $(OLDEST_TORCH), the oldest"
	@echo "                              that setup.cfg allows, in $(OLDEST_VENV) (from PyPI: several GB)"
	@echo "make lint                     ruff and mypy"
	@echo "make clean                    remove $(VENV), $(OLDEST_VENV), build output and caches; runs are kept"

train: $(INSTALLED)
	@echo "==> stormlit train $(ARGS)"
	$(BIN)/stormlit train $(ARGS)

# One thread a process: the processes already fill the cores. Lint runs beside the tests' first minutes.
test: $(INSTALLED_DEV)
	@echo "==> lint, and the tests, in $(WORKERS) processes"
	@$(MAKE) --no-print-directory lint & lint=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" --durations=15 $(PYTEST_ARGS); \
	tests=$$?; wait $$lint && exit $$tests

# The longest files come first (tests/conftest.py), so that no process is left alone with one.
test-all: lint
	@echo "==> every test, in $(WORKERS) processes"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=40 $(PYTEST_ARGS)

test-oldest:
	@test -x $(OLDEST_VENV)/bin/python || $(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip install --quiet -e ".[dev]" "torch==$(OLDEST_TORCH).*"
	OMP_NUM_THREADS=1 $(OLDEST_VENV)/bin/python -m pytest $(COMPILED_TESTS) $(PYTEST_ARGS)

lint: $(INSTALLED_DEV)
	@echo "==> ruff and mypy"
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

clean:
	rm -rf $(VENV) $(OLDEST_VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@echo "==> creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "stormlit needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps: pip runs again when the requirements change.
$(INSTALLED): $(REQUIREMENTS) | $(BIN)/python
	@echo "==> installing stormlit (the first time takes some minutes)"
	$(PIP) install --quiet -e .
	@touch $@

$(INSTALLED_DEV): $(REQUIREMENTS) | $(BIN)/python
	@echo "==> installing stormlit with its development tools (the first time takes some minutes)"
	$(PIP) install --quiet -e ".[dev]"
	@touch $(INSTALLED) $@
