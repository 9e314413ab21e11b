# Two commands do everything: `make demo` and `make test`. Both set up a virtual environment in .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test check setup peers bench bench-quick bench-throughput bench-snapshot bench-simulation bench-planning bench-exchange evidence evidence-quick clean

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

# Environments of the peers; one that cannot be made is left out of the benchmark, whose table says so.
peers:
	-$(PYTHON) scripts/setup_peers.py .peers

# paceline beside its peers (docs/benchmarks.md); BENCH_JSON=FILE for the list of results by itself.
BENCH = $(BIN)/python -m benchmarks.bench $(if $(BENCH_JSON),--json $(BENCH_JSON))

bench: setup peers
	$(BENCH)

bench-quick: setup peers
	$(BENCH) --quick

bench-throughput: setup
	$(BIN)/python benchmarks/throughput.py

bench-snapshot: setup
	$(BIN)/python benchmarks/snapshot.py

bench-simulation: setup
	$(BIN)/python benchmarks/simulation.py

bench-planning: setup
	$(BIN)/python benchmarks/planning.py

# As root its network namespaces count bytes on the wire, too; what is in evidence/results/exchange is not measured again.
bench-exchange: setup
	$(BIN)/python benchmarks/exchange.py

EVIDENCE = planning gba_switch gba_criteo stragglers swap autopilot three_thousand_grid three_thousand gp_factorization mrmn compression codistillation

# About four hours on two cores; what was run before is not run again.
evidence: setup
	for claim in $(EVIDENCE); do $(BIN)/python evidence/$$claim.py || exit 1; done

evidence-quick: setup
	for claim in $(EVIDENCE); do $(BIN)/python evidence/$$claim.py --quick || exit 1; done

clean:
	rm -rf $(VENV) demo
