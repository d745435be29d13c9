# `make` without a target prints the help.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)
# A variable as one word of the shell, as it was given: a path may have $, quotes and blanks.
quoted = '$(subst ','\'',$(value $1))'

help: ## print this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

env: $(VENV)/installed ## create the environment in .venv

# Bytecode is compiled on all cores, where pip takes one; some packages hold templates that are no Python.
$(VENV)/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -c 'import platform as p, sys; here = (p.system(), p.machine()); sys.exit(here != ("Linux", "x86_64") and "faiss-gpu exists for Linux on x86-64 only, and this is %s on %s; on Windows use WSL" % here)'
	@echo "creating or updating $(VENV): some minutes, 8 GB"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --requirement requirements.txt
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@

repro: env ## run the pipeline with the active params.yaml (dvc repro)
	dvc repro
	@python -m stages.tools.results

# One thread for each process, and bytecode for the hundreds of processes that tests start.
test: env ## run all tests
	OMP_NUM_THREADS=1 env -u PYTHONDONTWRITEBYTECODE python -m pytest -n auto --maxprocesses 8 --dist loadgroup

test-cuda: env ## run the numeric tests and every stage on a GPU, against the CPU
	python -m pytest --device cuda

test-hosts: env ## run the stages over two hosts made of namespaces (minutes; needs root, iproute2, openssh-server)
	python -m pytest --hosts tests/hosts

check: env ## check formatting, lint and types
	ruff format --check stages tests
	ruff check stages tests
	mypy

doctor: env ## look for what a crash left behind (FIX=1: repair what is safe)
	python -m stages.tools.doctor $(if $(filter-out 0,$(FIX)),--fix)

torture: env ## kill the pipeline at random and compare the results (KILLS=20)
	python -m tests.torture --kills $(or $(KILLS),20)

bench: env ## measure the speed of the long stages, as one table (COMPILE=1: compiled too)
	python -m tests.bench $(if $(filter-out 0,$(COMPILE)),--compile)

scale: env ## project a run at the paper's scale on this machine [PRESET=cocostuff27] [CHECK=1: of params.yaml, beside the last run]
	python -m tests.bench.scale $(if $(PRESET),--preset $(PRESET)) $(if $(DEVICE),--device $(DEVICE)) $(if $(filter-out 0,$(CHECK)),--check)

preset: env ## write params.yaml: NAME=folder DATA=path/to/data [MINUTES=10] [BASE=picie] [FORCE=1] [FAST=1]
	$(if $(NAME),,$(error give a NAME: make preset NAME=folder DATA=photos, or another file of presets/))
	python -m stages.tools.preset $(NAME) $(if $(value DATA),--data $(call quoted,DATA)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(BASE),--base $(BASE)) $(if $(filter-out 0,$(FORCE)),--force) $(if $(filter-out 0,$(FAST)),--no-estimate)

pin: env ## accept the images as they are now, after photographs were added [WARM=1: start from the last models]
	python -m stages.tools.pin $(if $(filter-out 0,$(WARM)),--warm)

names: env ## write a first names.yaml, from matched classes if there are labels (FORCE=1: replace names)
	python -m stages.tools.name_clusters $(if $(filter-out 0,$(FORCE)),--force)

table: env ## run a table of the paper: NAME=4 [SEEDS=0,1] [ARGS=--dry-run]
	$(if $(NAME),,$(error give a NAME: make table NAME=4, or another file of presets/tables/))
	python -m stages.tools.table $(NAME) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

parameters: env ## write docs/parameters.md anew, after a change of a setting or its comment
	python -m stages.tools.parameters

.PHONY: help env repro test test-cuda test-hosts check bench scale doctor torture preset table parameters pin names
.DEFAULT_GOAL := help
