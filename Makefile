# Two commands do everything: `make demo` and `make test`. Both set up a virtual environment in .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test check setup bench-throughput clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) scripts/setup.py $(VENV)

demo: setup
	$(BIN)/python scripts/demo.py

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check src tests examples scripts benchmarks docs
	$(BIN)/ruff format --check src tests examples scripts benchmarks docs
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-throughput: setup
	$(BIN)/python benchmarks/throughput.py

clean:
	rm -rf $(VENV) demo
