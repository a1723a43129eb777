# `make serve` starts the service, `make test` runs the tests; both install first.
PYTHON ?= python3
VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 8000
# Package index with a CPU build of torch, where pip's default is a CUDA build (see docs/run.md).
TORCH_INDEX ?=
BIN := $(VENV)/bin
FUZZ ?=
BENCH ?= --docs docs/benchmarks.md
RUNS ?= runs
INSTALL := pip install --quiet --disable-pip-version-check
TORCH_FROM := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
PIP := $(BIN)/python -m $(INSTALL)

.PHONY: install serve test lint format docs fuzz bench paper clean

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

# FUZZ holds the options of the campaign: `make fuzz FUZZ="--inputs 100 --damage 10"`.
fuzz: $(VENV)/.dev .venv-fuzz/.done
	$(BIN)/python -m tests.fuzz.campaign --schemathesis .venv-fuzz/bin/st $(FUZZ)

# BENCH holds the options of the comparison: `make bench BENCH="--shapes street --rounds 1 --seconds 1"`.
bench: .venv-bench/.done
	.venv-bench/bin/python -m benchmarks.serving compare $(BENCH)

# Trains the networks missing in RUNS (hours on two cores), then fits and measures every method.
BACKBONES := camvid-pyramid camvid-segformer camvid-unet nuclei-pyramid nuclei-segformer nuclei-unet field-unet
paper: $(BACKBONES:%=$(RUNS)/%/averaged.pt)
	$(BIN)/python -m benchmarks.paper fit $(BACKBONES) --runs $(RUNS)
	$(BIN)/python -m benchmarks.paper write $(BACKBONES) --runs $(RUNS) --out docs/paper
	$(BIN)/python -m benchmarks.paper.ablation camvid-pyramid nuclei-pyramid --runs $(RUNS) --out docs/ablation-tables.md

TRAIN = $(BIN)/python -m training.train --balance 0 --boundary 0 --augment basic --network $* --out $(@D)
$(RUNS)/camvid-%/averaged.pt: | $(VENV)/.dev
	$(TRAIN) --data camvid --groups 0016E5 --measure 0006R0,0001TP $(SCHEDULE_camvid_$*)
$(RUNS)/nuclei-%/averaged.pt: | $(VENV)/.dev
	$(TRAIN) --data nuclei --crop 256 256 $(SCHEDULE_nuclei_$*)
$(RUNS)/field-%/averaged.pt: | $(VENV)/.dev
	$(TRAIN) --data field --crop 384 512 --batch 4 --epochs 60 --cooldown 30 --every 20
SCHEDULE_camvid_pyramid = --epochs 40 --cooldown 20
SCHEDULE_camvid_segformer = --rate 1e-3 --epochs 40 --cooldown 20
SCHEDULE_camvid_unet = --epochs 25 --cooldown 12
SCHEDULE_nuclei_pyramid = --widths 16,32,64,128 --epochs 40 --cooldown 20
SCHEDULE_nuclei_segformer = --rate 1e-3 --epochs 60 --cooldown 30
SCHEDULE_nuclei_unet = --epochs 40 --cooldown 20

clean:
	rm -rf $(VENV) .venv-fuzz .venv-bench .venv-bench-bentoml build *.egg-info .pytest_cache .mypy_cache .ruff_cache

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

.venv-fuzz/.done: tests/fuzz/requirements.txt
	$(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/python -m $(INSTALL) --requirement tests/fuzz/requirements.txt
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
