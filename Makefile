# `make demo`, `make test` and `make check` need Python 3.11 or later and make; they make their own environment in .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The newest libraries need Python 3.12; each file holds the versions that were tested together.
CONSTRAINTS ?= $(shell $(PYTHON) -c 'import sys; print("constraints.txt" if sys.version_info < (3, 12) else "constraints-newest.txt")')
INSTALL := $(BIN)/python -m pip install --quiet -c $(CONSTRAINTS)
PYTEST := $(BIN)/python -m pytest
# On up to four cores; torch, a browser and mkdocs, which the other three folders need, are not installed for it.
MAIN_TESTS := $(PYTEST) --numprocesses=auto --maxprocesses=4 --dist=worksteal --ignore=tests/interop --ignore=tests/browser --ignore=tests/docs

.PHONY: demo test check slow lint interop browser docs fuzz bench gpu clean

demo: $(VENV)/installed  ## train on made-up scans and score them, a few minutes
	$(BIN)/python -m brainseg_jax.main --config=configs/attn_dice.py:quick --workdir=runs/demo

test: $(VENV)/installed  ## what a change needs: every test but the slow ones, some minutes on two cores
	$(MAIN_TESTS) -m "not slow"

check: lint test slow interop browser docs  ## everything; `make test check` runs nothing twice

slow: $(VENV)/installed  ## the tests that `make test` leaves out
	$(MAIN_TESTS) -m slow

lint: $(VENV)/installed  ## format, lint and types, without changing anything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

interop: $(VENV)/installed  ## against other libraries; it installs torch, which `make test` is to do without
	$(INSTALL) -e '.[test,interop]'
	$(PYTEST) tests/interop

browser: $(VENV)/installed  ## the report in Chromium, which the system has
	$(INSTALL) -e '.[test,browser]'
	$(PYTEST) tests/browser

docs: $(VENV)/installed  ## the site, into build/site, where a broken link is an error; and its notebook
	$(INSTALL) -e '.[test,docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	$(PYTEST) tests/docs

fuzz: $(VENV)/installed  ## 20 000 damaged files of each kind through what reads them, some hours; tests/fuzz.py has a smaller --count
	$(BIN)/python tests/fuzz.py --count=20000

bench: $(VENV)/installed  ## speed beside PyTorch's, some minutes on an idle machine; the table is benchmarks/speed.json
	$(INSTALL) -e '.[bench]'
	$(BIN)/python -m benchmarks.speed

CUDA ?= 12
# Where pip finds no PyTorch that goes with this CUDA, the comparison with it is left out.
gpu: $(VENV)/installed  ## everything about one GPU in 8 minutes, see docs/how-to/gpus.md; CUDA=13 SOURCE=FOLDER
	$(INSTALL) -e '.[cuda$(CUDA),export,bench]' || $(INSTALL) -e '.[cuda$(CUDA),export]'
	$(BIN)/python -m benchmarks.gpu $(if $(SOURCE),--source='$(SOURCE)')

clean:  ## remove the environment; runs and data stay
	rm -rf $(VENV)

# The stamp is made last, so an interrupted install is done again; a changed requirement installs again.
$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[test,dicom,export]'
	touch $@
