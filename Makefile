# What you can do here. `make` alone prints this list.
#
# Everything runs in .venv, made from requirements-dev.lock on first use and again when the lock changes.
# Another interpreter: `make test PYTHON=python3.13`.

PYTHON ?= python3.11
SECONDS_OF_DEMO ?= 30
LIVES ?= 500
FAULTS ?= 1000
TIMES ?= 50
MINUTES ?= 30
WORKLOAD ?= p1
ARGS ?=
PROCESSES ?= 2
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help demo test unit simulate chaos rebalances kills outage workers soak planted core lint format types contracts docs pages bench results ci lock clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): requirements-dev.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on PATH: install Python 3.11 or newer, or say PYTHON=..." >&2; exit 1; }
	@echo "Preparing .venv with $(PYTHON) (once; takes about a minute)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# --- to see it -------------------------------------------------------------------------------------

demo: $(STAMP)  ## watch asyncpar work for 30 seconds; no Kafka, no Docker needed
	@$(BIN)/asyncpar demo --seconds $(SECONDS_OF_DEMO)

bench: $(STAMP)  ## measure this machine (WORKLOAD=p1, all, ..., ARGS="--rounds 5"); each figure with its settings
	@[ "$(WORKLOAD)" = all ] || grep -q '^| `$(WORKLOAD).py` ' benchmarks/README.md || { echo "no workload $(WORKLOAD): see the table in benchmarks/README.md" >&2; exit 2; }
	@$(BIN)/python benchmarks/$(WORKLOAD).py $(ARGS)

results: $(STAMP)  ## keep the JSON of `make bench WORKLOAD=all` in the repository, and write the page of it
	@$(BIN)/python -m benchmarks.page build/benchmarks/*.json

# --- to trust it -----------------------------------------------------------------------------------

test: $(STAMP)  ## every test; those against a real Kafka need Java 17 and Maven, or ASYNCPAR_TEST_BOOTSTRAP
	@$(BIN)/python -m pytest --numprocesses=$(PROCESSES) --dist=loadfile

unit: $(STAMP)  ## the tests that need no Kafka
	@$(BIN)/python -m pytest -m "not broker"

simulate: $(STAMP)  ## simulated lives of a group under faults, from a fresh seed (LIVES=500)
	@$(BIN)/python -m asyncpar.testing.simulate --lives $(LIVES)

chaos: $(STAMP)  ## real faults on a real Kafka until FAULTS=1000 have struck, each kind often enough
	@$(BIN)/python -m tests.chaos --faults $(FAULTS)

rebalances: $(STAMP)  ## members join and leave TIMES=50 times under load on a real Kafka: no record runs twice
	@$(BIN)/python -m tests.rebalances --times $(TIMES)

kills: TIMES = 100
kills: $(STAMP)  ## kill -9 on the way to a dead letter, TIMES=100 times on a real Kafka: none is lost
	@$(BIN)/python -m tests.letters kills --times $(TIMES)

outage: MINUTES = 3
outage: $(STAMP)  ## what a handler depends on is out for MINUTES=3, with a breaker, then with a budget
	@$(BIN)/python -m tests.letters outage --minutes $(MINUTES)

workers: MINUTES = 1
workers: $(STAMP)  ## a child process is killed every 200 ms for MINUTES=1 on a real Kafka: 0 lost, 0 reordered
	@$(BIN)/python -m tests.workers --minutes $(MINUTES)

soak: $(STAMP)  ## MINUTES=30 at half of what a member can do: memory, descriptors, tasks and lag must not grow
	@$(BIN)/python -m tests.soak --minutes $(MINUTES)

planted: $(STAMP)  ## plant bugs in the engine, and see each of them caught
	@$(BIN)/python -m tests.planted

core: $(STAMP)  ## the core's own tests, which must cover every branch of it
	@$(BIN)/python -m pytest -q tests/core --cov=asyncpar/core --cov-branch --cov-report=term-missing:skip-covered --cov-fail-under=100

# --- to keep it in order ---------------------------------------------------------------------------

lint: $(STAMP)  ## ruff: rules and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

format: $(STAMP)  ## ruff: rewrite what can be rewritten
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

types: $(STAMP)  ## mypy --strict
	@$(BIN)/mypy

contracts: $(STAMP)  ## import-linter: who may import whom
	@$(BIN)/lint-imports

docs: $(STAMP)  ## build the site into site/; fails on a dead link or a page that is not current
	@$(BIN)/python docs/generate.py --check
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pages: $(STAMP)  ## write the generated pages: settings, metrics, tables of proof, benchmarks
	@$(BIN)/python docs/generate.py

ci: ## all of it, as the gate runs it
	@bash .ci/run

# --- to maintain it --------------------------------------------------------------------------------

# No --all-extras: `all` names asyncpar itself, which is not to be pinned.
lock: $(STAMP)  ## pin the newest versions that pyproject.toml allows
	@$(BIN)/pip-compile --quiet --upgrade --extra demo --extra fastapi --extra msgspec --extra postgres --extra redis --extra uvloop \
		--extra dev \
		--generate-hashes --allow-unsafe --strip-extras --no-annotate --no-header \
		--no-emit-index-url --no-emit-find-links --no-emit-options --output-file requirements-dev.lock pyproject.toml
	@sed -i '1i # Everything that the demo, the tests, the docs and the build need, pinned with hashes. Made by `make lock`.' requirements-dev.lock

clean:  ## remove .venv and what tools left behind
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage site build dist
