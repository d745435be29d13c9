# `make` alone prints this help.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)

help: ## print this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

env: $(VENV)/installed ## create the environment (.venv)

$(VENV)/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@

repro: env ## the whole paper on the active params.yaml; the demo, as committed
	dvc repro
	@echo
	@dvc metrics show metrics/evaluate/raw.json metrics/evaluate/refined.json
	@echo "Look: metrics/report/index.html"

test: env ## all tests
	python -m pytest

check: env ## formatting, lint and types, without running anything
	ruff format --check stages tests
	ruff check stages tests
	mypy

doctor: env ## after a crash: what is left behind, and what to do (FIX=1: do what is safe)
	python -m stages.tools.doctor $(if $(FIX),--fix)

torture: env ## kill the pipeline at random points (KILLS=20), and compare the bytes; some minutes
	python -m tests.torture --kills $(or $(KILLS),20)

bench: env ## images per second of the long stages, beside the bare network's (COMPILE=1: under torch.compile too)
	python -m tests.bench $(if $(COMPILE),--compile)

preset: env ## another params.yaml: make preset NAME=folder DATA=path/to/data [FORCE=1]
	python -m stages.tools.preset $(NAME) $(if $(DATA),--data "$(DATA)") $(if $(FORCE),--force)

table: env ## a table of the paper as experiments: make table NAME=4 [SEEDS=0,1,2] [ARGS="--rows 2,6 --dry-run"]
	python -m stages.tools.table $(NAME) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

.PHONY: help env repro test check bench doctor torture preset table
.DEFAULT_GOAL := help
