# `make demo` and `make test` do everything on a machine that has Python 3.11 or newer.
#
#   make demo     install, compile ring-tiny for this machine's CPU, generate text, check against the reference
#   make test     install, run the tests                  (PYTEST_ARGS='-k scan' to choose, JOBS=1 for one process)
#   make lint     formatting, lint, types, import order of the layers
#   make format   rewrite the files as the formatter wants them
#   make clean    remove the virtual environment and everything built
#
# PYTHON=... names the interpreter, VENV=... the environment's folder, PIP_ARGS=... goes to pip.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= cpu,text,test,dev
PIP_ARGS ?=
PYTEST_ARGS ?=
JOBS ?= auto

DEMO_DIR ?= build/demo
DEMO_PROMPT ?= The state of a linear-attention layer is a matrix that every token decays and adds to.
DEMO_TOKENS ?= 48

# Interpreters tried in this order; a pyenv shim may exist and still not run, so each is asked for its version.
PYTHONS := python3 python3.12 python3.11 python3.13 python3.14 python
NEWER_THAN_310 := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: help demo test lint format clean

help:
	@sed -n 's/^#   //p' Makefile

# Made anew only when the packages asked for change.
$(VENV)/.installed: pyproject.toml constraints.txt
	@python="$(PYTHON)"; \
	if [ -n "$$python" ]; then \
	    "$$python" -c '$(NEWER_THAN_310)' 2>/dev/null \
	        || { echo "error: PYTHON=$$python is not a Python 3.11 or newer" >&2; exit 1; }; \
	else \
	    for candidate in $(PYTHONS); do \
	        if "$$candidate" -c '$(NEWER_THAN_310)' 2>/dev/null; then python="$$candidate"; break; fi; \
	    done; \
	    [ -n "$$python" ] || { \
	        echo "error: ringc needs Python 3.11 or newer; none of '$(PYTHONS)' is" >&2; \
	        echo "  = help: install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }; \
	fi; \
	echo "making $(VENV) with $$("$$python" --version) and installing ringc[$(EXTRAS)]"; \
	"$$python" -m venv --clear "$(VENV)" || { \
	    echo "error: '$$python -m venv' failed" >&2; \
	    echo "  = help: some systems pack it apart: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/ringc compile ring-tiny -o $(DEMO_DIR) --target cpu
	$(BIN)/ringc inspect $(DEMO_DIR)
	$(BIN)/ringc run $(DEMO_DIR) --weights random:0 --prompt "$(DEMO_PROMPT)" --max-new-tokens $(DEMO_TOKENS)
	$(BIN)/ringc check $(DEMO_DIR) --prompt "$(DEMO_PROMPT)" --max-new-tokens $(DEMO_TOKENS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist ringc.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
