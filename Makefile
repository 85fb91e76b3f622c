# Two commands do everything on a machine that has only Python 3.11 and make: `make replay` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SHELL  := /bin/bash

export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: replay test test-core test-ray test-slow lint install clean

replay: $(STAMP)            ## replay the embedded synthetic stream with every strategy
	$(BIN)/python jobs/stream_replay.py --config jobs/configs/synthetic.yaml

test: $(STAMP) lint         ## lint, types and the test suite without the long ones, in two halves side by side
	$(MAKE) --no-print-directory -j2 test-core test-ray

test-core: $(STAMP)         ## what computes; it gives way to the half that waits for Ray
	nice $(BIN)/python -m pytest -p no:cacheprovider --ignore=tests/distributed

test-ray: $(STAMP)          ## what runs on a Ray cluster
	$(BIN)/python -m pytest tests/distributed

test-slow: $(STAMP)         ## the long tests
	$(BIN)/python -m pytest -m slow --timeout 1800

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

install: $(STAMP)

# torch first: with a CPU wheel at hand (pip's find-links) pip takes it, and nothing later replaces it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
