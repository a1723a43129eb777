# `make serve` starts the service, `make test` runs the tests; both install first.
PYTHON ?= python3
VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 8000
# Package index with a CPU build of torch, where pip's default is a CUDA build (see docs/run.md).
TORCH_INDEX ?=
BIN := $(VENV)/bin
BENCH ?= --docs docs/benchmarks.md
RUNS ?= runs
INSTALL := pip install --quiet --disable-pip-version-check
TORCH_FROM := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
PIP := $(BIN)/python -m $(INSTALL)

.PHONY: install serve test lint format docs bench paper clean

install: $(VENV)/.dev

serve: $(VENV)/.run
	$(BIN)/segcal serve --host $(HOST) --port $(PORT)

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Writes docs/api.md from the OpenAPI document.
docs: $(VENV)/.dev
	$(BIN)/python -m docs.generate_api

# BENCH holds the options of the comparison: `make bench BENCH="--shapes street --rounds 1 --seconds 1"`.
bench: .venv-bench/.done
	.venv-bench/bin/python -m benchmarks.serving compare $(BENCH)

# Trains the networks missing in RUNS (hours on two cores), then fits and measures every method.
paper: $(RUNS)/strong/averaged.pt $(RUNS)/basic/averaged.pt $(RUNS)/overfit/averaged.pt
	$(BIN)/python -m benchmarks.paper $(foreach name,strong basic overfit,$(name)=$(RUNS)/$(name)/averaged.pt) --cache $(RUNS)/paper --out docs/paper

TRAIN = $(BIN)/python -m training.train --groups 0016E5 --out $(@D)
$(RUNS)/rendered: $(VENV)/.dev
	$(BIN)/python -m training.scenes $@ --count 500 --seed 1
$(RUNS)/strong/averaged.pt: | $(VENV)/.dev $(RUNS)/rendered
	$(TRAIN) --augment strong --rendered $(RUNS)/rendered --balance 0.25 --epochs 60 --cooldown 30
$(RUNS)/basic/averaged.pt: | $(VENV)/.dev
	$(TRAIN) --augment basic --balance 0.25 --epochs 60 --cooldown 30
$(RUNS)/overfit/averaged.pt: $(RUNS)/basic/averaged.pt
	$(TRAIN) --augment none --start $< --balance 0 --boundary 0 --epochs 30 --cooldown 15

clean:
	rm -rf $(VENV) .venv-bench .venv-bench-bentoml build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "expected Python 3.11 or newer, got " + sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "expected the venv module: apt install python3-venv" >&2; exit 1; }
	@echo "installing into $(VENV); torch is the one large download"
	$(PIP) --constraint constraints.txt $(TORCH_FROM) torch
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $@

# BentoML needs other versions of packages than the service, so it has its own environment.
.venv-bench/.done: pyproject.toml constraints.txt benchmarks/requirements.txt benchmarks/requirements-bentoml.txt
	$(PYTHON) -m venv .venv-bench
	$(PYTHON) -m venv .venv-bench-bentoml
	.venv-bench/bin/python -m $(INSTALL) --constraint constraints.txt $(TORCH_FROM) torch
	.venv-bench/bin/python -m $(INSTALL) --constraint constraints.txt --requirement benchmarks/requirements.txt --editable .
	.venv-bench-bentoml/bin/python -m $(INSTALL) --constraint constraints.txt $(TORCH_FROM) torch
	.venv-bench-bentoml/bin/python -m $(INSTALL) --requirement benchmarks/requirements-bentoml.txt
	@touch $@
