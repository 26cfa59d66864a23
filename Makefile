# `make` lists the targets. Everything runs in .venv, which is made when it is missing and renewed when
# pyproject.toml or constraints.txt change.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-all lowest test-lowest test-weights faults transformers-suite lint format docs wheels build clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEVELOPMENT := $(VENV)/.installed
LOWEST := .venv-lowest
WEIGHTS := .venv-weights
# The lowest pydicom downloads pictures when it is imported for tests.
DOWNLOADS := tests/imageio/test_medical.py tests/data/test_medical_sets.py
# What needs $(WEIGHTS), and runs there alone.
PARITY := tests/segformer/originals/test_parity.py
SOURCES := src tests benchmarks scripts
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# Two files of tests at a time: tests of one file share what is expensive to make.
PYTEST := python -m pytest -n 2 --dist loadfile
# Tests that load OpenVINO have processes of their own: after it, a process that had run many other tests broke down.
ENGINES := tests/engines tests/export tests/cli/test_engines.py

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

$(RUNTIME): pyproject.toml constraints.txt
	@echo "Installing segtune and what it needs into $(VENV) (PyTorch is large: this takes minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e .
	@touch $@

$(DEVELOPMENT): $(RUNTIME)
	@echo "Installing what tests, checks and the documentation need into $(VENV)"
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e ".[dev]"
	@touch $@

setup: $(DEVELOPMENT)  ## make .venv with segtune and the developer's tools

demo: $(RUNTIME)  ## train on the embedded satellite tiles, evaluate, draw overlays (a few minutes on a CPU; the web page is segtune demo)
	@echo "1/2 Training SegFormer B0 from random weights on the satellite tiles (a minute and a half on two cores)"
	$(BIN)/segtune train demo training.output_dir=runs/demo training.overwrite=true
	@echo "2/2 Evaluating the best checkpoint on the test split, and drawing what it says"
	$(BIN)/segtune evaluate runs/demo/best demo --split test --overlays runs/demo/overlays
	@echo "Done. Look at runs/demo/report.html and runs/demo/overlays/overview.jpg; README.md says how to use your data."

test: setup  ## run the fast tests
	$(BIN)/$(PYTEST) -m "not slow" $(ENGINES:%=--ignore=%)
	$(BIN)/$(PYTEST) -m "not slow" $(ENGINES)

test-slow: setup  ## run the slow tests: the built wheel, longer trainings
	$(BIN)/$(PYTEST) -m slow $(ENGINES:%=--ignore=%) --ignore=$(PARITY)
	$(BIN)/$(PYTEST) -m slow $(ENGINES)

test-all: test test-slow  ## run all tests

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python $(PIP_INSTALL) -c constraints-lowest.txt -e ".[test]"
	@touch $@

lowest: $(LOWEST)/.installed  ## make .venv-lowest with the lowest versions allowed

test-lowest: lowest  ## run the tests of model, data, training and Hub with the lowest versions allowed
	$(LOWEST)/bin/$(PYTEST) -m "not slow" tests/parity tests/segformer tests/labels tests/imageio tests/data tests/training/test_trainer.py tests/hub/test_push.py $(DOWNLOADS:%=--ignore=%)

# keras-hub and LibreYOLO beside the packages of $(VENV), without what they would bring along: TensorFlow, torchvision.
$(WEIGHTS)/.installed: $(DEVELOPMENT) tests/support/workers/weights.txt
	$(BIN)/python -m venv $(WEIGHTS)
	@site='import site; print(site.getsitepackages()[0])'; \
	$(BIN)/python -c "$$site" > "$$($(WEIGHTS)/bin/python -c "$$site")/development.pth"
	$(WEIGHTS)/bin/python $(PIP_INSTALL) --no-deps -r tests/support/workers/weights.txt
	@touch $@

test-weights: $(WEIGHTS)/.installed  ## compare converted weights with keras-hub and LibreYOLO themselves
	$(BIN)/python -m pytest $(PARITY)

faults: setup  ## kill, fill disks, damage files, give hostile input (half an hour); write the table of docs/reliability.md
	PYTHONPATH=src:tests $(BIN)/python -m faults.campaign --page docs/reliability.md

transformers-suite: setup  ## fetch transformers' own shared tests, run them on its SegFormer and on ours, and compare
	$(BIN)/python tests/contract/transformers_suite/suite.py

lint: setup  ## check style, formatting and types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: setup  ## mend what can be mended
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: setup  ## build the documentation into site/; fails at any warning
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

wheels: setup  ## make wheels/, from which pip installs segtune where there is no internet
	$(BIN)/python scripts/make_wheels.py --output wheels

build: setup  ## build the sdist and the wheel into dist/
	$(BIN)/python -m build --no-isolation

clean:  ## remove what was built or cached; keeps .venv and runs/
	rm -rf build dist site .pytest_cache .ruff_cache .mypy_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
