# `make` lists the targets. Everything runs in .venv, which is made when it is missing and renewed when
# pyproject.toml or constraints.txt change.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-all test-lowest lint format docs build clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := src tests benchmarks scripts
LOWEST := .venv-lowest
# Two files of tests at a time: tests of one file share what is expensive to make.
PYTEST := python -m pytest -n 2 --dist loadfile

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

setup: $(STAMP)  ## make .venv with segtune and the developer's tools

demo: setup  ## train on the embedded satellite tiles, evaluate, draw overlays (a few minutes on a CPU)
	$(BIN)/segtune train demo training.output_dir=runs/demo training.overwrite=true
	$(BIN)/segtune evaluate runs/demo/best demo --split test --overlays runs/demo/overlays

test: setup  ## run the fast tests
	$(BIN)/$(PYTEST) -m "not slow"

test-slow: setup  ## run the slow tests: the built wheel, longer trainings
	$(BIN)/$(PYTEST) -m slow

test-all: test test-slow  ## run all tests

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e ".[test]"
	@touch $@

test-lowest: $(LOWEST)/.installed  ## run the tests of model, data, training and Hub with the lowest versions allowed
	$(LOWEST)/bin/$(PYTEST) -m "not slow" tests/parity tests/segformer tests/labels tests/imageio tests/data tests/training/test_trainer.py tests/hub/test_push.py

lint: setup  ## check style, formatting and types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: setup  ## mend what can be mended
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: setup  ## build the documentation into site/; fails at any warning
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

build: setup  ## build the sdist and the wheel into dist/
	$(BIN)/python -m build --no-isolation

clean:  ## remove what was built or cached; keeps .venv and runs/
	rm -rf build dist site .pytest_cache .ruff_cache .mypy_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
