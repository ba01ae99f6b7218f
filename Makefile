# Targets: setup demo test test-all lint. Each does all set-up by itself, once, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.DEFAULT_GOAL := setup
.PHONY: setup demo test test-all lint clean

setup: $(READY)

# torch first: the package and DeepSpeed are built against it, without isolation.
$(READY): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.version_info >= (3, 10) or sys.exit("Python " + v + " found, 3.10 or newer expected (make PYTHON=...)")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch numpy setuptools wheel ninja pybind11
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/python -m ppa_fast.demo --out runs/demo

test: $(READY)
	$(BIN)/python -m pytest -m 'not slow'

test-all: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info runs/demo
