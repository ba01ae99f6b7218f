# Targets: setup demo test test-all test-lowest test-newest lint docs gpu. Each but gpu first does the setup, once.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
EXTRA ?= dev
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BUILT := build/native/.built
SOURCES := $(wildcard csrc/*/*.* csrc/include/ppa/*.h)
HARNESS := $(wildcard tests/csrc/simt/*.h tests/csrc/simt/*.cpp tests/csrc/simt/*.cu)
# On every core (tests/conftest.py counts them); the tests of a file share what they set up, so they stay together.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint $(CONSTRAINTS)

.DEFAULT_GOAL := setup
.PHONY: setup demo test test-all test-versions test-lowest test-newest lint docs gpu clean

setup: $(BUILT)

# torch first: the package and DeepSpeed are built against it, without isolation.
$(READY): pyproject.toml setup.py $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.version_info >= (3, 11) or sys.exit("Python: found " + v + ", expected 3.11 or newer (make PYTHON=...)")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch numpy setuptools wheel ninja pybind11
	$(PIP) --no-build-isolation --editable '.[$(EXTRA)]'
	@touch $@

# The native operations again, where their sources are newer (ninja builds what changed).
$(BUILT): $(READY) $(SOURCES) setup.py
	$(BIN)/python setup.py -q build_ext --inplace
	@mkdir -p $(@D) && touch $@

demo: $(BUILT)
	$(BIN)/python -m ppa_fast.sample.demo --out runs/demo

test: $(BUILT)
	$(PYTEST) -m 'not slow'

# DeepSpeed's CPU collectives are built first: a test that kills a process must not interrupt the build.
test-all: $(BUILT)
	$(BIN)/python -c 'from importlib import import_module as load; load("deepspeed.comm.torch").build_shm_op()' >/dev/null
	$(PYTEST)

# The tests that depend most on the versions of torch and transformers, and a run from text to evaluation.
test-versions: $(BUILT)
	$(BIN)/python -c 'from importlib import import_module as load; load("deepspeed.comm.torch").build_shm_op()' >/dev/null
	$(PYTEST) -m 'not slow' tests/ops tests/model tests/csrc/test_build.py tests/test_pipeline.py tests/test_requirements.py

# `test-versions` with the lower bounds of pyproject.toml, and with the newest releases. It works in a copy of the sources
# with an environment of its own: the build of this checkout stays as it is. TORCH_EXTENSIONS_DIR: DeepSpeed's build of
# one torch must not serve another. Machine code for one GPU architecture shows that the CUDA sources compile.
test-lowest: CONSTRAINTS := constraints-lowest.txt
test-newest: CONSTRAINTS := /dev/null
test-lowest test-newest: test-%:
	@mkdir -p build/$* && find build/$* -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
	git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from - | tar --extract --directory build/$*
	TORCH_CUDA_ARCH_LIST=9.0 TORCH_EXTENSIONS_DIR=$(CURDIR)/build/$*/build/extensions \
		$(MAKE) -C build/$* test-versions CONSTRAINTS=$(CONSTRAINTS) EXTRA=test

# Builds, tests, sanitizes and measures on this machine's GPU, with PYTHON as it is; installs nothing.
gpu:
	$(PYTHON) benchmarks/gpu.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/clang-format --dry-run --Werror $(filter %.h %.cpp %.cu %.cuh,$(SOURCES)) $(HARNESS)

# The site, in build/site. `python -m http.server --directory build/site` shows it; search needs no network.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build dist *.egg-info runs/demo ppa_fast/*.so
