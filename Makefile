# Everything runs inside .venv, which `make setup` makes. PIP_* variables reach pip as they are.
# Choose the interpreter with `make setup PYTHON=/path/to/python`.

VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.stamp
EXTRAS := train,dev
TPU    := $(VENV)/tpu
PYTHON ?=

# Tried in this order; the first that runs, is recent enough and can make environments is taken.
CANDIDATES  := python3.13 python3.12 python3.11 python3
PYTHON_TEST := import sys, venv, ensurepip; assert sys.version_info >= (3, 11)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-tpu bench format clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## Make .venv and install the project into it, once per change of pyproject.toml

$(STAMP): pyproject.toml
	@set -e; \
	if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  found=; \
	  for candidate in $(or $(PYTHON),$(CANDIDATES)); do \
	    if "$$candidate" -c '$(PYTHON_TEST)' >/dev/null 2>&1; then found="$$candidate"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "error: no usable Python 3.11 or newer (tried: $(or $(PYTHON),$(CANDIDATES)))." >&2; \
	    echo "Install one together with its venv and ensurepip modules (on Debian and Ubuntu:" >&2; \
	    echo "the package python3-venv), or name one: make setup PYTHON=/path/to/python" >&2; \
	    exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv --clear $(VENV); \
	fi
	@echo "Installing odeformer-jax[$(EXTRAS)] into $(VENV); the first time takes a few minutes"
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

demo: setup ## Train the digits model, then evaluate it under every solver
	$(PY) -m train --config=configs/digits.py --workdir=runs/digits
	$(PY) -m train.evaluate --workdir=runs/digits --solvers=all

# Tests run on the CPU; every other target uses whatever device JAX finds.
test: setup ## Lint, check formatting and types, then run the fast tests
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/basedpyright --pythonpath $(PY)
	JAX_PLATFORMS=cpu $(PY) -m pytest -n 2 --dist loadfile

test-slow: setup ## Run the long tests
	JAX_PLATFORMS=cpu $(PY) -m pytest -m slow

test-tpu: setup $(TPU)/.stamp ## Compile for TPUs, without one
	PYTHONPATH=$(CURDIR)/$(TPU) JAX_PLATFORMS=cpu $(PY) -m pytest -m tpu

# Apart from .venv's own packages: beside libtpu, jax would look for a TPU wherever it runs.
LIBTPU := from importlib.metadata import requires; \
  print(next(r.partition(";")[0] for r in requires("jax") if r.startswith("libtpu")))

$(TPU)/.stamp: $(STAMP)
	@rm -rf $(TPU)
	@echo "Installing libtpu into $(TPU)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --target $(TPU) \
	  "$$($(PY) -c '$(LIBTPU)')"
	@touch $@

bench: setup ## Time the integration
	$(PY) -m benchmarks.integration

format: setup ## Fix what ruff can fix, and format
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

clean: ## Remove build products and caches; .venv and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . \( -name .venv -o -name .git -o -name runs \) -prune -o \
	  \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +
