# The two commands are `make quickstart` and `make test`; both set the environment up first, once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready
DOCKER ?= docker
BASE   ?= python:3.11-slim-bookworm
VARIANT ?= cuda
IMAGE  ?= robustkt:$(VARIANT)

.PHONY: setup quickstart test slow lint format docs lock image image-test clean
.DEFAULT_GOAL := help

help:
	@echo 'make quickstart   install into .venv, then the whole life of a robust model on embedded data (about 3 minutes)'
	@echo 'make test         install into .venv, then the linters and every ordinary test'
	@echo 'make slow         the slow tests too (kill -9 at ten moments, Fashion-MNIST)'
	@echo 'make docs         these pages as a web site in build/docs, warnings as errors, without a network'
	@echo 'make setup        only the installation; a second call costs nothing'
	@echo 'make image        the container image $(IMAGE); VARIANT=cpu without a GPU, BASE=…@sha256:… pins the base'
	@echo 'make image-test   builds the image and runs what the pages say, with any docker client'
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
	$(BIN)/hadolint Dockerfile

test: lint
	$(BIN)/python -m pytest

slow: setup
	$(BIN)/python -m pytest -m 'slow or not slow'

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python -m docs.generate --check
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --fresh-env docs build/docs
	@echo 'open build/docs/index.html'

COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-header

# one resolution; the image's two files are parts of it, as uv keeps the versions that stand in its output file
lock:
	$(COMPILE) --extra dev --extra docs --extra export --extra s3 --extra sign --extra timm --output-file requirements.lock pyproject.toml
	cp requirements.lock requirements-runtime.lock
	$(COMPILE) --output-file requirements-runtime.lock pyproject.toml
	cp requirements.lock requirements-build.lock
	$(COMPILE) --output-file requirements-build.lock --group pyproject.toml:build

image:
	$(DOCKER) build --build-arg BASE=$(BASE) --build-arg VARIANT=$(VARIANT) \
	  --build-arg REVISION=$$(git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null) --tag $(IMAGE) .

image-test: setup
	ROBUSTKT_DOCKER=$(DOCKER) $(BIN)/python -m pytest -n0 -m slow tests/test_image.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
