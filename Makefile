# Two commands do all there is to set up: `make demo` and `make test`. Both make .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE := 1

.PHONY: demo test lint docs clean

demo: .venv/installed
	$(BIN)/radfm demo

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: .venv/installed
	$(BIN)/python docs/api.py build/api
	@echo "Open build/api/index.html"

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "radfm needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	@echo "Installing radfm and what it needs into .venv: some minutes, once, about 6 GB"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info runs
