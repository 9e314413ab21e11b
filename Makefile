# Two commands do everything: `make demo` and `make test`. Both set up a virtual environment in .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test check setup bench-throughput bench-snapshot bench-simulation evidence evidence-quick clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) scripts/setup.py $(VENV)

demo: setup
	$(BIN)/python scripts/demo.py

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check src tests examples scripts benchmarks evidence docs
	$(BIN)/ruff format --check src tests examples scripts benchmarks evidence docs
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-throughput: setup
	$(BIN)/python benchmarks/throughput.py

bench-snapshot: setup
	$(BIN)/python benchmarks/snapshot.py

bench-simulation: setup
	$(BIN)/python benchmarks/simulation.py

EVIDENCE = gba_switch gba_criteo stragglers swap three_thousand_grid three_thousand mrmn

# About four hours on two cores; what was run before is not run again.
evidence: setup
	for claim in $(EVIDENCE); do $(BIN)/python evidence/$$claim.py || exit 1; done

evidence-quick: setup
	for claim in $(EVIDENCE); do $(BIN)/python evidence/$$claim.py --quick || exit 1; done

clean:
	rm -rf $(VENV) demo
