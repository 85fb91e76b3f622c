# Two commands do everything on a machine that has only Python 3.11 and make: `make replay` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
STAMP  := $(VENV)/.installed
TORCH  := $(shell grep '^torch==' constraints.txt)
SHELL  := /bin/bash
RUNS   := tests/distributed tests/chaos
CRDS   := https://raw.githubusercontent.com/ray-project/kuberay/v1.5.1/helm-chart/kuberay-operator/crds

export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help replay test test-core test-ray test-slow chaos chaos-ray crds lint format install clean

help:                       ## say what can be made
	@grep -E '^[a-z-]+: .*##' Makefile | sed -E 's/^([a-z-]+):[^#]*## */\1\t/' | expand -t 12

replay: $(STAMP)            ## replay the embedded synthetic stream with every strategy
	$(BIN)/lsat-ray replay --config jobs/configs/synthetic.yaml

test: $(STAMP) lint         ## lint, types and the tests without the long ones, in two halves side by side
	$(MAKE) --no-print-directory -j2 test-core test-ray

test-core: $(STAMP)         ## what computes; it gives way to the half that waits for Ray
	nice $(BIN)/python -m pytest -p no:cacheprovider $(addprefix --ignore=,$(RUNS))

test-ray: $(STAMP)          ## what runs on a Ray cluster, and the faults
	$(BIN)/python -m pytest $(RUNS)

test-slow: $(STAMP)         ## the long tests
	$(BIN)/python -m pytest -m slow --timeout 3600

chaos: $(STAMP)             ## 200 seeded faults, each compared with the undisturbed run
	$(BIN)/python -m tests.chaos --points 200 --seed 0 --workers 2 --json benchmarks/results/chaos.json

chaos-ray: $(STAMP)         ## kill every kind of process of a run on Ray, then at drawn points
	$(BIN)/python -m tests.chaos --kills --json benchmarks/results/chaos_ray.json
	$(BIN)/python -m tests.chaos --backend ray --points 18 --seed 0 --json benchmarks/results/chaos_ray_drawn.json

crds:                       ## fetch the CRD files that KubeRay publishes: the tests hold the manifests against them
	mkdir -p .crds
	for kind in rayjobs rayservices; do curl -fsSL -o .crds/ray.io_$$kind.yaml $(CRDS)/ray.io_$$kind.yaml || exit; done

lint: $(STAMP)              ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)            ## put style and format right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(STAMP)           ## the environment alone

# torch comes first, and nothing later replaces it. A wheel at hand (pip's find-links) wins; else uv takes the build that
# fits this machine, the CPU's where there is no GPU; else pip takes what its index has.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if $(PIP) install --quiet --no-index --no-deps $(TORCH) 2>/dev/null; then \
	    echo "$(TORCH): the wheel at hand"; \
	elif $(PIP) install --quiet uv && \
	    $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --torch-backend=auto $(TORCH); then \
	    echo "$(TORCH): the build for this machine, chosen by uv"; \
	else \
	    echo "$(TORCH): what pip finds"; $(PIP) install --quiet --constraint constraints.txt $(TORCH); \
	fi
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:                      ## remove the environment and the caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
