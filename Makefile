# Everything that a newcomer or CI needs; `make demo` and `make test` set themselves up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP_FLAGS ?=

.PHONY: setup demo test peers lint format types docs bench index clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Partita needs Python 3.11 or newer; name one with: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PIP_FLAGS) --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh scripts/demo.sh

test: $(READY)
	$(BIN)/python -m pytest

# Our numbers against the peers' own code, each peer in an environment of its own under .bench.
PEERS := trl verl
peers: $(READY)
	$(BIN)/python benchmarks/environments.py $(PEERS)
	for peer in $(PEERS); do \
	  PYTHONPATH=src .bench/$$peer/bin/python -m pytest -q -o addopts= tests/peers/test_*$$peer*.py tests/engines/test_$${peer}_*.py || exit 1; \
	done

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

index: $(READY)
	$(BIN)/python -m partita.core.registry

docs: $(READY)
	$(BIN)/pip install --quiet $(PIP_FLAGS) --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python scripts/make_docs.py
	$(BIN)/mkdocs build --strict

# Hours on a machine that nothing else may use meanwhile; `make bench SUITE=start-up` takes a part of it.
SUITE := cartpole halfcheetah grpo dpo sac offline sac-curves offline-curves planning start-up scaling
bench: $(READY)
	for bench in $(SUITE); do $(BIN)/python benchmarks/run.py $$bench || exit 1; done
	$(BIN)/python benchmarks/compare.py
	$(BIN)/python benchmarks/anchors.py
	$(BIN)/python benchmarks/anatomy.py

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache
