# make train | test | install | clean | help. Needs Python 3.11 or newer; everything else goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
# Modules are compiled when they are first imported; compiling all of them is half of an installation.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable
# JAX's CUDA plug-in is a large download: only where there is a GPU's driver.
PACKAGE := .$(if $(shell command -v nvidia-smi 2>/dev/null),[cuda])

.PHONY: help train test install clean
.DEFAULT_GOAL := help

help:
	@echo "make train    theano-mgpu train: ResNet-18 on the bundled photographs, minutes on two cores"
	@echo "make test     format, lint, types and tests, also under mpirun, and those in the documentation"
	@echo "make install  only make the environment, .venv (PYTHON=python3.12 picks another Python)"
	@echo "make clean    remove .venv, runs/ and what the tools left"

train: .venv/installed
	$(BIN)/theano-mgpu train

test: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@# First those of several ranks: the whole suite's summary is the last line. Two ranks of two devices, four of one.
	$(BIN)/mpirun -n 2 $(BIN)/python -m pytest -q -p no:xdist -m 'ranks and not slow and not gpu'
	$(BIN)/mpirun -n 4 $(BIN)/python -m pytest -q -p no:xdist -m 'ranks and not slow and not gpu'
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

install: .venv/installed

# The stamps are newer than pyproject.toml while what it asks for is installed.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, but $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
		"Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "making .venv with $$($(PYTHON) --version) and installing the package and what it needs: half a minute, or a whole"
	@$(PYTHON) -m venv .venv
	@$(PIP) '$(PACKAGE)'
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "installing what the tests need"
	@$(PIP) '.[dev]'
	@touch $@

clean:
	rm -rf .venv runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
