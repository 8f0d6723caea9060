# `make serve` and `make test` need Python 3.11 or newer, make and a C compiler; they build everything else in .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help serve test test-all test-faults test-abuse check format bench eval-nano clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	@echo "Building the environment in .venv: a few minutes and about 6 GB, once."
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

serve: $(STAMP)  ## Start the server on port 8019
	$(BIN)/acestep-serve

test: $(STAMP)  ## Run the tests, without the slow campaigns
	$(BIN)/python -m pytest -m 'not slow and not gpu' --ignore=tests/faults
	$(BIN)/python -m pytest tests/faults  # by itself: it kills all that its process has started

test-all: $(STAMP)  ## Run every test this machine can run
	$(BIN)/python -m pytest --ignore=tests/faults
	$(BIN)/python -m pytest tests/faults

test-faults: $(STAMP)  ## Stage the faults that no accepted job may be lost to, and print the table (most of an hour)
	$(BIN)/python -m tests.faults

test-abuse: $(STAMP)  ## Misbehave towards a server in every way we know, and print what others noticed (some minutes)
	$(BIN)/python -m tests.abuse

check: $(STAMP)  ## Format, lint, types, the import rule
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## Print the benchmark tables
	$(BIN)/python -m benchmarks

eval-nano: $(STAMP)  ## Measure the nano model against what it must hold (the first time it trains its judges)
	$(BIN)/python -m training.nano.evaluate --model nano

clean:  ## Remove the environment and all caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
