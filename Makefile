# Targets: setup demo test test-all lint gpu. Each but gpu does all set-up by itself, once, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BUILT := build/native/.built
SOURCES := $(wildcard csrc/*/*.* csrc/include/ppa/*.h)
# On every core (tests/conftest.py counts them); the tests of a file share what they set up, so they stay together.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.DEFAULT_GOAL := setup
.PHONY: setup demo test test-all lint gpu clean

setup: $(BUILT)

# torch first: the package and DeepSpeed are built against it, without isolation.
$(READY): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.version_info >= (3, 10) or sys.exit("Python " + v + " found, 3.10 or newer expected (make PYTHON=...)")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch numpy setuptools wheel ninja pybind11
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

# The native operations again, where their sources are newer (ninja builds what changed).
$(BUILT): $(READY) $(SOURCES) setup.py
	$(BIN)/python setup.py -q build_ext --inplace
	@mkdir -p $(@D) && touch $@

demo: $(BUILT)
	$(BIN)/python -m ppa_fast.demo --out runs/demo

test: $(BUILT)
	$(PYTEST) -m 'not slow'

test-all: $(BUILT)
	$(PYTEST)

# Builds, tests, sanitizes and measures on this machine's GPU, with PYTHON as it is; installs nothing.
gpu:
	$(PYTHON) benchmarks/gpu.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(filter %.h %.cpp %.cu %.cuh,$(SOURCES))

clean:
	rm -rf $(VENV) build dist *.egg-info runs/demo ppa_fast/*.so
