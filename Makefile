# Every target does its own set-up; when nothing has changed, that takes a moment.
#   make quickstart     align a small model on two CPU cores, with a table before/after
#   make test           all tests but the slow ones and those for a GPU
#   make test-all       all tests but those for a GPU
#   make docs-site      the documentation as a site that needs no network, in site/
#   make lint | docs | setup
# Variables: PYTHON (3.11 or 3.12), EXTRAS (on a GPU host: gpu,dev), TORCH_INDEX (the URL of PyTorch's CPU builds, asked
# where pip finds none by itself), NEGALIGN_CACHE (folder for the converted model), ARGS (more arguments for pytest or the
# quickstart).

# The interpreter of the last set-up, else the first one whose version fits.
PYTHON ?= $(shell for python in "$$(cat .venv/.python 2>/dev/null)" python3 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& { echo "$$python"; exit; }; done; echo python3)
EXTRAS ?= cpu,dev
TORCH_INDEX ?=
ARGS ?=
BIN := .venv/bin

.PHONY: help quickstart test test-all lint docs docs-site setup

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

quickstart: setup
	@$(BIN)/negalign-ray train --preset quickstart --set run.overwrite=true $(ARGS)

test: setup
	@$(BIN)/python -m pytest -m "not slow and not gpu" $(ARGS)

test-all: setup
	@$(BIN)/python -m pytest -m "not gpu" $(ARGS)

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy negalign_ray

docs: setup
	@$(BIN)/python -c "from negalign_ray.monitoring.page import catalogue_markdown; print(catalogue_markdown(), end='')" > docs/metrics.md
	@$(BIN)/python -c "from negalign_ray.settings.page import settings_markdown; print(settings_markdown(), end='')" > docs/configuration.md

docs-site: setup
	@$(BIN)/mkdocs build --strict --quiet && echo "open site/index.html"

setup:
	@"$(PYTHON)" scripts/setup.py --extras "$(EXTRAS)" --torch-index "$(TORCH_INDEX)"
