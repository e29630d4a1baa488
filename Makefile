# `make demo` and `make test` need Python 3.11 or later and make; they make their own environment in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint interop browser bench clean

demo: $(VENV)/installed  ## train on made-up scans and score them, a few minutes
	$(BIN)/python -m brainseg_jax.main --config=configs/attn_dice.py:quick --workdir=runs/demo

test: $(VENV)/installed  ## every test, on up to four cores
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

lint: $(VENV)/installed  ## format and lint, without changing anything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

interop: $(VENV)/installed  ## against other libraries; it installs torch, which `make test` is to do without
	$(BIN)/python -m pip install --quiet -e '.[test,interop]' -c constraints.txt
	$(BIN)/python -m pytest tests/interop

browser: $(VENV)/installed  ## the report in Chromium, which the system has
	$(BIN)/python -m pip install --quiet -e '.[test,browser]' -c constraints.txt
	$(BIN)/python -m pytest tests/browser

bench: $(VENV)/installed  ## speed beside PyTorch's, some minutes on an idle machine; the table is benchmarks/speed.json
	$(BIN)/python -m pip install --quiet -e '.[bench]' -c constraints.txt
	$(BIN)/python -m benchmarks.speed

clean:  ## remove the environment; runs and data stay
	rm -rf $(VENV)

# The stamp is made last, so an interrupted install is done again; a changed requirement installs again.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[test]' -c constraints.txt
	touch $@
