# Everything runs inside .venv, which `make setup` makes. PIP_* variables reach pip as they are.
# Choose the interpreter with `make setup PYTHON=/path/to/python`.
# Versions are those of constraints.txt, which were tested together; LATEST=1, with any target,
# takes the newest instead. Changing from one to the other installs again.

VENV   := .venv
PY      = $(VENV)/bin/python
LATEST ?=
LOCK   := $(if $(LATEST),,constraints.txt)
STAMP  := $(VENV)/.stamp$(if $(LATEST),-latest)
EXTRAS := train,dev
TPU    := $(VENV)/tpu
DOCS   := $(VENV)/docs
DOCS_STAMP := $(DOCS)/.stamp$(if $(LATEST),-latest)
PYTHON ?=
TESTS  ?=
FILES  ?=

# Tried in this order; the first that runs, is recent enough and can make environments is taken.
CANDIDATES  := python3.13 python3.12 python3.11 python3
PYTHON_TEST := import sys, venv, ensurepip; assert sys.version_info >= (3, int(sys.argv[1]))
# Prints that interpreter, of $(1), for Python 3.$(2) or newer; prints nothing if there is none.
find_python  = for candidate in $(1); do \
  if "$$candidate" -c '$(PYTHON_TEST)' $(2) >/dev/null 2>&1; then echo "$$candidate"; break; fi; done
# Python $(1) on the PATH, and those that pyenv holds without having them on it.
interpreters = $(foreach v,$(1),python$v $(wildcard $(PYENV)/versions/$v.*/bin/python))
PYENV        = $(shell pyenv root 2>/dev/null)

PIP      = $(PY) -m pip install --quiet --disable-pip-version-check
UPGRADE := --upgrade --upgrade-strategy eager
PINS    := $(if $(LOCK),--constraint $(LOCK))

.DEFAULT_GOAL := help
.PHONY: help setup lock demo check quick test test-slow test-tpu test-compat test-latest \
  test-lowest mutate bench docs format clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## Make .venv and install into it, once per change of pyproject.toml or constraints.txt

# Makes the environment, if it is not there or was moved.
define environment
	@set -e; \
	if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  found=$$($(call find_python,$(or $(PYTHON),$(CANDIDATES)),11)); \
	  if [ -z "$$found" ]; then \
	    echo "error: no usable Python 3.11 or newer (tried: $(or $(PYTHON),$(CANDIDATES)))." >&2; \
	    echo "Install one together with its venv and ensurepip modules (on Debian and Ubuntu:" >&2; \
	    echo "the package python3-venv), or name one: make setup PYTHON=/path/to/python" >&2; \
	    exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv --clear $(VENV); \
	fi
endef

$(STAMP): pyproject.toml $(LOCK)
	$(environment)
	@echo "Installing odeformer-jax[$(EXTRAS)] into $(VENV); the first time takes a few minutes"
	@rm -f $(VENV)/.stamp*
	@$(PIP) $(or $(PINS),$(UPGRADE)) --editable '.[$(EXTRAS)]'
	@touch $@

# uv reads UV_* variables, where pip reads PIP_*. It is no part of the environment otherwise.
COMPILE := $(VENV)/bin/uv pip compile --quiet --upgrade --no-annotate --no-config

# Does not need `setup`: constraints.txt may be what is in its way.
lock: ## Renew constraints.txt: the newest versions that work together, on every Python
	$(environment)
	@$(PIP) uv
	$(COMPILE) --universal --python-version 3.11 --all-extras \
	  --custom-compile-command 'make lock' --output-file constraints.txt pyproject.toml

demo: setup ## Train the digits model, then evaluate it under every solver
	$(PY) -m train --config=configs/digits.py --workdir=runs/digits
	$(PY) -m train.evaluate --workdir=runs/digits --solvers=all

# A release of somebody else's may bring new rules, so only the locked tools and libraries judge.
check: setup ## Lint, check formatting and types
ifeq ($(LOCK),constraints.txt)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/basedpyright --pythonpath $(PY)
else
	@echo "Lint and type check left out: they hold for the versions of constraints.txt alone"
endif

# Tests run on the CPU; every other target uses whatever device JAX finds.
PYTEST  = JAX_PLATFORMS=cpu $(PY) -m pytest
SPREAD := -n 2 --dist loadfile

# Left out of it: what is refused, and what few programs take: second derivatives, other terms.
SLOWER := */test_arguments.py */test_ends.py */test_derivatives.py \
  */test_centred.py */test_streams.py */test_local_terms.py

quick: setup ## Run most tests of ode, transformer and models, and a run that must learn
	$(PYTEST) $(SPREAD) $(SLOWER:%=--ignore-glob='%') \
	  tests/ode tests/transformer tests/models tests/train/test_learns.py

test: check ## Check, then run the fast tests, or those of TESTS='tests/models/test_vit.py ...'
	$(PYTEST) $(SPREAD) $(TESTS)

test-slow: setup ## Run the long tests
	$(PYTEST) -m slow

test-tpu: setup $(TPU)/.stamp ## Compile for TPUs, without one
	PYTHONPATH=$(CURDIR)/$(TPU) $(PYTEST) -m tpu

# Apart from .venv's own packages: next to libtpu, jax would look for a TPU wherever it runs.
LIBTPU := from importlib.metadata import requires; \
  print(next(r.partition(";")[0] for r in requires("jax") if r.startswith("libtpu")))

$(TPU)/.stamp: $(STAMP)
	@rm -rf $(TPU)
	@echo "Installing libtpu into $(TPU)"
	@$(PIP) $(PINS) --no-deps --target $(TPU) "$$($(PY) -c '$(LIBTPU)')"
	@touch $@

# Environments of their own, apart from .venv, for other interpreters and other versions.
COMPAT := tests/ode tests/transformer tests/models tests/train/data/text/test_blocks.py \
  tests/train/test_loop.py tests/train/test_text_runs.py
NEXT    = $$($(PY) -c 'import sys; print(sys.version_info.minor + 1)')

test-compat: setup ## Check, and test the library and a run of each kind, on a newer Python if there is one
	@found=$$($(call find_python,$(call interpreters,3.13 3.12),$(NEXT))); \
	if [ -z "$$found" ]; then echo "No Python newer than that of $(VENV) was found: nothing to test"; \
	else $(MAKE) test VENV=.venv/compat PYTHON="$$found" LATEST= TESTS='$(COMPAT)'; fi

test-latest: ## Run the fast tests on the newest Python there is, with the newest releases
	@rm -rf .venv/latest
	@found=$$($(call find_python,$(call interpreters,3.14 3.13 3.12 3.11) python3,11)); \
	$(MAKE) test VENV=.venv/latest PYTHON="$$found" LATEST=1

test-lowest: setup ## Run the fast tests on Python 3.11, with the oldest versions that pyproject.toml allows
	@$(PIP) uv
	@$(COMPILE) --resolution lowest-direct --python-version 3.11 --extra train --extra dev \
	  --output-file .venv/lowest.txt pyproject.toml
	@found=$$($(call find_python,$(call interpreters,3.11),11)); \
	$(MAKE) test VENV=.venv/lowest PYTHON="$${found:-python3.11}" LATEST= LOCK=.venv/lowest.txt

mutate: setup ## Put bugs in on purpose, into FILES="train/step.py ..." or all, and see which survive
	$(PY) -m benchmarks.mutate $(FILES)

bench: setup ## Time the integration
	$(PY) -m benchmarks.integration

docs: $(DOCS_STAMP) ## Build the documentation site into site/, without network
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

# An environment of its own: the sources are read and not imported, so that it needs no jax.
DOCS_EXTRA := import tomllib; \
  project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
  print(*project["optional-dependencies"]["docs"], sep="\n")

$(DOCS_STAMP): override VENV := $(DOCS)
$(DOCS_STAMP): pyproject.toml $(LOCK)
	$(environment)
	@echo "Installing the documentation's tools into $(DOCS)"
	@rm -f $(DOCS)/.stamp*
	@$(PY) -c '$(DOCS_EXTRA)' > $(DOCS)/requirements.txt
	@$(PIP) $(or $(PINS),$(UPGRADE)) --requirement $(DOCS)/requirements.txt
	@touch $@

format: setup ## Fix what ruff can fix, and format
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

clean: ## Remove build products and caches; .venv and runs/ stay
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache
	find . \( -name .venv -o -name .git -o -name runs \) -prune -o \
	  \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +
