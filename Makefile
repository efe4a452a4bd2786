# `make demo` and `make test` need only Python 3.11 or newer, git and make.
PYTHON ?= python3
BIN := .venv/bin
RUN := .venv/.runtime
DEV := .venv/.development

.PHONY: demo test test-quick lint types bench bench-long clean

demo: $(RUN)  ## the main job on the embedded cohort
	rm -rf studies/demo studies/demo-cohort
	$(BIN)/python -m medtransfer demo --output studies/demo

# Processes of one thread each (tests/conftest.py): torch on small images gains nothing from a second one.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup

test: $(DEV)  ## everything
	$(PYTEST) --durations 15

test-quick: $(DEV)  ## in a minute and a half: no processes, no studies, not all families of networks
	$(PYTEST) --durations 15 -m "not study and not process and not slow"

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

# The short ones, and all the rest.
BENCH := $(patsubst %,tests/benchmarks/bench_%.py,core decoding detection evaluate fuzz)
BENCH_LONG := $(filter-out $(BENCH),$(sort $(wildcard tests/benchmarks/bench_*.py)))

bench: $(DEV)  ## ratios against named baselines, printed
	for file in $(BENCH); do $(BIN)/python $$file || exit 1; done

bench-long: $(DEV)  ## those that take long, deliberate faults among them
	for file in $(BENCH_LONG); do $(BIN)/python $$file || exit 1; done

$(RUN): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("medtransfer needs Python 3.11 or newer; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(DEV): $(RUN)
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

clean:
	rm -rf .venv studies build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
