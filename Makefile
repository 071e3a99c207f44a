# `make train` and `make test` are all that a fresh clone needs; `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/digits.py:flexpool,reg
WORKDIR ?= runs/digits
PYTEST_ARGS ?=

# The CUDA build of JAX where there is an NVIDIA GPU; REQUIREMENTS=requirements.txt forces it, on
# a cluster's login node for example.
NVIDIA_GPU := $(shell nvidia-smi -L 2>/dev/null | grep '^GPU' || ls /proc/driver/nvidia/version 2>/dev/null)
REQUIREMENTS ?= $(if $(NVIDIA_GPU),requirements.txt,requirements-cpu.txt)

BIN := $(VENV)/bin
# A stamp is newer than the requirements that it stands for, so a change of theirs installs again.
RUN_STAMP := $(VENV)/.installed-$(REQUIREMENTS)
DEV_STAMP := $(VENV)/.installed-requirements-dev.txt
DOCS_STAMP := $(VENV)/.installed-requirements-docs.txt
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DELETE_ON_ERROR:
.PHONY: help env env-dev train test test-slow survive fuzz test-newest gpu-pack lint format docs figures \
  clean

help: ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 18

env: $(RUN_STAMP) ## make the virtual environment .venv, once

# pip is what a venv gets last: where it is missing, making the environment was cut short.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: needs Python 3.11 or newer, but $(PYTHON) is older; try make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): requirements-cpu.txt requirements.txt | $(BIN)/pip
	$(INSTALL) -r $(REQUIREMENTS)
	@touch $@

env-dev: $(DEV_STAMP)

$(DEV_STAMP): requirements-dev.txt $(RUN_STAMP)
	$(INSTALL) -r requirements-dev.txt
	@touch $@

train: env ## train FlexPool ResNet20 on the digits; CONFIG=... WORKDIR=... choose another run
	$(BIN)/python launch.py --config=$(CONFIG) --workdir=$(WORKDIR)

test: env-dev ## run the tests and the examples in the docstrings
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-slow: env-dev ## run the tests that take longer than half a minute each
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

survive: env-dev ## kill runs at random moments and compare their ends; N=100 says how many
	$(BIN)/python -m tests.reliability.survive --runs=$(or $(N),10)

fuzz: env-dev ## damage files at random and read them; N=10000 says how often
	$(BIN)/python -m tests.reliability.fuzz --cases=$(or $(N),1000)
	$(BIN)/python -m tests.reliability.fuzz_state --cases=$(or $(N),500)

# An environment of its own with the newest versions that this Python can install.
test-newest: ## run the tests with the newest JAX, Flax and Orbax
	$(PYTHON) -m venv .venv-newest
	sed -nE 's/^([A-Za-z_-]+)==[^;]*/\1/p' requirements-cpu.txt requirements-dev.txt \
	  | grep -v jax > .venv-newest/requirements.txt
	.venv-newest/bin/python -m pip install --quiet --upgrade "jax[cpu]" flax optax orbax-checkpoint \
	  -r .venv-newest/requirements.txt
	.venv-newest/bin/python -m pytest $(PYTEST_ARGS)

gpu-pack: env ## collect in .gpu what benchmarks/gpu.sh needs on a machine without network
	PYTHON=$(BIN)/python benchmarks/gpu.sh pack

lint: env-dev ## check style, format and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: env-dev ## rewrite the files in the project's format
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

$(DOCS_STAMP): requirements-docs.txt $(RUN_STAMP)
	$(INSTALL) -r requirements-docs.txt
	@touch $@

# Sphinx writes docs/modules/, a page for each module, and would keep those of modules that are gone.
docs: $(DOCS_STAMP) ## build the documentation site, build/site/index.html, and run its notebook
	rm -rf docs/modules
	$(BIN)/python -m sphinx -W -c docs . build/site

figures: $(DOCS_STAMP) ## draw docs/method.svg and the notebook's figures again
	$(BIN)/python docs/draw_method.py
	$(BIN)/jupyter-execute --inplace docs/first_hour.ipynb

clean: ## remove the environment and every cache; runs and data sets stay
	rm -rf $(VENV) build docs/modules dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
