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

.PHONY: install serve test clients fleet importers processors fuzz lint format docs bench paper clean

install: $(VENV)/.dev

serve: $(VENV)/.run
	$(BIN)/segcal serve --host $(HOST) --port $(PORT)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4

# Imports from other frameworks, with their packages in an environment of its own.
importers: .venv-importers/.done
	.venv-importers/bin/python -m pytest tests/conversion

# Tests with other people's clients, which have an environment of their own.
# Label Studio and the browser tests need other packages than the others. The messages of kserve's
# gRPC and those of tritonclient cannot be registered in one process.
CLIENTS = SERVICE_PYTHON=$(CURDIR)/$(BIN)/python $(1)/bin/python -m pytest -W default --confcutdir tests/clients
OTHERS := test_label_studio.py test_kserve_manifest.py
clients: $(VENV)/.dev .venv-clients/.done .venv-clients-label-studio/.done .venv-clients-page/.done
	$(call CLIENTS,.venv-clients) tests/clients --ignore tests/clients/page $(OTHERS:%=--ignore tests/clients/%)
	$(call CLIENTS,.venv-clients) tests/clients/test_kserve_manifest.py
	$(call CLIENTS,.venv-clients-label-studio) tests/clients/test_label_studio.py
	.venv-clients-page/bin/python -m pytest tests/clients/page

# Buckets (a server of S3) and Ray, with their packages in an environment of its own.
fleet: .venv-fleet/.done
	.venv-fleet/bin/python -m pytest -W default --show-capture=no tests/fleet

# int8 models on an emulated processor without VNNI; `make test` skips this where qemu is missing.
processors: $(VENV)/.dev
	@{ command -v qemu-x86_64 || command -v qemu-x86_64-static; } >/dev/null || { echo "expected qemu-x86_64: apt install qemu-user" >&2; exit 1; }
	$(BIN)/python -m pytest tests/processors

lint: $(VENV)/.dev $(VENV)/.platforms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Writes docs/api.md from the OpenAPI document, and docs/command-line.md from the commands.
docs: $(VENV)/.dev
	$(BIN)/python -m docs.generate_api
	$(BIN)/python -m docs.generate_command_line

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
	$(BIN)/python -m benchmarks.paper.mass_ablation camvid-pyramid nuclei-pyramid field-unet --runs $(RUNS) --out docs/mass-tables.md

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
	rm -rf $(VENV) .venv-importers .venv-clients* .venv-fleet .venv-fuzz .venv-bench .venv-bench-bentoml build *.egg-info .pytest_cache .mypy_cache .ruff_cache

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

.venv-clients/.done: tests/clients/requirements.txt
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m $(INSTALL) --requirement tests/clients/requirements.txt
	@touch $@

.venv-clients-label-studio/.done: tests/clients/requirements-label-studio.txt
	$(PYTHON) -m venv .venv-clients-label-studio
	.venv-clients-label-studio/bin/python -m $(INSTALL) --requirement tests/clients/requirements-label-studio.txt
	@touch $@

# The browser tests also run the service in their own process.
.venv-clients-page/.done: pyproject.toml constraints.txt tests/clients/page/requirements.txt
	$(PYTHON) -m venv .venv-clients-page
	.venv-clients-page/bin/python -m $(INSTALL) --constraint constraints.txt $(TORCH_FROM) torch
	.venv-clients-page/bin/python -m $(INSTALL) --constraint constraints.txt --requirement tests/clients/page/requirements.txt --editable '.[dev]'
	@touch $@

# Each dependency has a wheel on each platform; asks the package index.
$(VENV)/.platforms: pyproject.toml constraints.txt tests/platforms.py | $(VENV)/.dev
	$(BIN)/python -m tests.platforms
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

# moto needs another version of a package than constraints.txt, so it is installed after the service.
.venv-fleet/.done: pyproject.toml constraints.txt tests/fleet/requirements.txt
	$(PYTHON) -m venv .venv-fleet
	.venv-fleet/bin/python -m $(INSTALL) --constraint constraints.txt $(TORCH_FROM) torch
	.venv-fleet/bin/python -m $(INSTALL) --constraint constraints.txt --editable '.[dev,store]'
	.venv-fleet/bin/python -m $(INSTALL) --requirement tests/fleet/requirements.txt
	@touch $@

.venv-importers/.done: pyproject.toml constraints.txt tests/conversion/requirements.txt
	$(PYTHON) -m venv .venv-importers
	.venv-importers/bin/python -m $(INSTALL) --constraint constraints.txt $(TORCH_FROM) torch
	.venv-importers/bin/python -m $(INSTALL) --constraint constraints.txt --editable '.[dev]'
	.venv-importers/bin/python -m $(INSTALL) --no-deps --requirement tests/conversion/requirements.txt
	@touch $@
