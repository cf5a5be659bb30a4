# Everything a fresh machine needs: Python 3.11 (or newer) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SHELL := /bin/bash
WORK ?= models-work

.PHONY: demo test lint bench chaos docs models clean install

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $(STAMP)

demo: $(STAMP)  ## simulated survey -> archive -> classify on local Ray -> catalogue -> report
	$(BIN)/applecider-batch demo demo

test: lint  ## lint, types and all tests
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## every stage of the way on a simulated survey, then what else needs no data
	$(BIN)/python -m benchmarks

docs: $(STAMP)  ## the documentation as a site in site/, to be read without a network
	$(BIN)/python -m mkdocs build --strict --quiet

chaos: $(STAMP)  ## a Ray cluster over S3, its processes killed at random, 20 rounds
	$(BIN)/python -m benchmarks.chaos --rounds 20

models: $(STAMP)  ## the packaged model set, from data to set; DATA=FOLDER of real data
	$(BIN)/python -m benchmarks.compact $(WORK) $(if $(DATA),--data $(DATA)) --install

clean:
	rm -rf $(VENV) demo build dist site
