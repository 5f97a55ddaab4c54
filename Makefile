# Sets up, runs, tests and packages edgeprofile, all in .venv. `make help` lists the targets.
#
# Needs GNU make, Python 3.11 or newer (another than python3: make PYTHON=python3.13 …), its headers and a C
# compiler; no root, and after the first time no network. Stamp files in .venv say what is done already.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := bin/python -m pip --quiet --disable-pip-version-check install
PIP := $(VENV)/$(INSTALL)
LOCK = CUSTOM_COMPILE_COMMAND="make lock" $(VENV)/lock/bin/pip-compile --quiet $(ARGS) --generate-hashes --strip-extras \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options
# Recipes name the environment's programs without their folder, as cython-lint does pycodestyle.
export PATH := $(CURDIR)/$(BIN):$(PATH)
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

CYTHON := $(wildcard ext/*.pyx ext/*.pxd src/edgeprofile/*.pxd)
COMPILED := $(patsubst ext/%.pyx,edgeprofile._%,$(wildcard ext/*.pyx))
BUILD_REQUIRES := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")
PROCESSORS = $(shell nproc)
# One more process than there are processors, because tests wait for servers that start, and for polls.
SIDE_BY_SIDE = --numprocesses=$$(($(PROCESSORS) + 1)) --dist=loadfile --no-loadscope-reorder -m "not alone"

.PHONY: help run test lint check-style check-types check-stubs check-cython bench soak build fuzz probe scan audit churn lock clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

run: $(VENV)/built ## make a sample shop, serve it, and print a request that works (ARGS="--profiles 100000")
	@edgeprofile demo $(ARGS)

test: lint ## check the code, then run all tests (or some, in one process: ARGS="-k limiter")
	@python -m pytest $(or $(ARGS),$(SIDE_BY_SIDE))
	@$(if $(ARGS),true,python -m pytest -m alone)

lint: $(VENV)/test $(VENV)/built ## check style and types, of the compiled modules and their stubs too
	@$(MAKE) --jobs=$(PROCESSORS) --output-sync check-types check-stubs check-cython check-style

check-style:
	@ruff check --quiet
	@ruff format --quiet --check || { ruff format --diff --quiet; exit 1; }

check-types:
	@mypy --no-error-summary

check-stubs:
	@python -m mypy.stubtest --concise --mypy-config-file pyproject.toml --allowlist tests/stubtest.txt $(COMPILED)

check-cython:
	@cython-lint ext src/edgeprofile

bench: $(VENV)/bench $(VENV)/built ## measure this machine against its peers (ARGS="--quick --only lookup,peers")
	@python loadtest/run.py $(ARGS)

soak: $(VENV)/bench $(VENV)/built ## ten minutes of load and trouble, then a million malformed requests (ARGS="--minutes 1")
	@python loadtest/soak.py $(ARGS)
	@python loadtest/malformed.py $(if $(filter --quick,$(ARGS)),--quick)

# The wheel is made from the sdist, which shows that the sdist lacks nothing.
build: $(VENV)/built ## make dist/*.tar.gz and dist/*.whl
	@rm -rf dist
	@python -c "from setuptools import build_meta; build_meta.build_sdist('dist')" --quiet >/dev/null
	@python -m pip --quiet --disable-pip-version-check wheel --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz
	@ls dist/*

# In a copy, because sanitized modules load only where the sanitizer's library was loaded first.
fuzz: $(VENV)/test ## throw damaged files and hostile requests at the compiled code, built with AddressSanitizer and UBSan
	@mkdir -p build/asan
	@tar -c --exclude='*.so' --exclude=__pycache__ setup.py pyproject.toml README.md LICENSE ext src tests | tar -x -C build/asan
	@cd build/asan && CC=gcc EDGEPROFILE_SANITIZE=1 python setup.py --quiet build_ext --inplace
	@cd build/asan && export ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=src PYTHONMALLOC=malloc; for program in tests/fuzz_*.py; \
		do LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" python $$program $(ARGS); done

probe: $(VENV)/test $(VENV)/built ## have Schemathesis ask a sample shop all that its API allows and forbids (ARGS="--max-time 600")
	@python tests/probe.py $(ARGS)

# In an environment of its own: sslyze wants an older version of what the service itself wants.
scan: $(VENV)/test $(VENV)/built ## have sslyze look at the service's TLS
	@test -x $(VENV)/sslyze/bin/sslyze || { $(PYTHON) -m venv $(VENV)/sslyze; $(VENV)/sslyze/$(INSTALL) sslyze; }
	@python tests/scan_tls.py $(VENV)/sslyze/bin/sslyze

# In an environment of its own too: what looks at the pins is not among them.
audit: $(VENV)/made ## ask whether a fault is known of any package that deploy/ pins
	@test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit; $(VENV)/audit/$(INSTALL) pip-audit; }
	@python tests/audit_pins.py $(VENV)/audit/bin/pip-audit

churn: $(VENV)/test $(VENV)/built ## change a PostgreSQL's rows all the time, and see that they are served (ARGS="--minutes 1")
	@python tests/churn.py $(ARGS)

# By the oldest Python that is supported, whose needs are those of the newer ones and more.
lock: $(VENV)/made ## pin what the container installs, by hashes, in deploy/ (ARGS=--upgrade)
	@test -x $(VENV)/lock/bin/pip-compile || { $(PYTHON) -m venv $(VENV)/lock; $(VENV)/lock/$(INSTALL) pip-tools; }
	@$(LOCK) --output-file deploy/requirements.txt pyproject.toml
	@$(LOCK) --only-build-deps --all-build-deps --allow-unsafe --output-file deploy/build-requirements.txt pyproject.toml

clean: ## remove all that the other targets made, the demo's folder too
	rm -rf $(VENV) build dist demo .hypothesis .mypy_cache .pytest_cache .ruff_cache src/*.egg-info src/edgeprofile/*.so
	find src tests loadtest -name __pycache__ -exec rm -rf {} +

# --- the virtual environment ----------------------------------------------------------------------------------------

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "edgeprofile needs Python 3.11 or newer, which '$(PYTHON)' is not: name one by make PYTHON=python3.13" >&2; exit 1; }
	@echo "setting up $(VENV): this takes a minute or two, once"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# What the build needs goes into .venv too, so that a change of the sources is built without a network.
$(VENV)/installed: pyproject.toml setup.py | $(VENV)/made
	@python -c '$(BUILD_REQUIRES)' > $(VENV)/build-requires.txt
	@$(PIP) --requirement $(VENV)/build-requires.txt
	@$(PIP) --no-build-isolation --editable .
	@touch $@

# pip has built what is older than its stamp; later changes are compiled one module at a time.
$(VENV)/built: $(CYTHON) $(VENV)/installed
	@if [ -n "$$(find $(CYTHON) -newer $(VENV)/installed)" ]; then python setup.py --quiet build_ext --inplace; fi
	@touch $@

# An extra of what is installed already: pip adds only what the extra names.
$(VENV)/test $(VENV)/bench: $(VENV)/installed
	@$(PIP) 'edgeprofile[$(@F)]'
	@touch $@
