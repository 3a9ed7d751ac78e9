# The two commands are `make quickstart` and `make test`; both set the environment up first, once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready

.PHONY: setup quickstart test slow lint format lock clean
.DEFAULT_GOAL := help

help:
	@echo 'make quickstart   install into .venv, then the whole life of a robust model on embedded data (about 3 minutes)'
	@echo 'make test         install into .venv, then the linters and every ordinary test'
	@echo 'make slow         the slow tests too (kill -9 at ten moments, Fashion-MNIST)'
	@echo 'make setup        only the installation; a second call costs nothing'
	@echo 'make lint format lock clean'

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("robustkt needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make setup PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'installing the locked dependencies into $(VENV): about 6 GB, some minutes, once'
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $(READY)

quickstart: setup
	$(BIN)/robustkt quickstart

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

slow: setup
	$(BIN)/python -m pytest -m 'slow or not slow'

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:
	uv pip compile pyproject.toml --extra dev --extra export --extra s3 --extra sign --extra timm --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --output-file requirements.lock

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
