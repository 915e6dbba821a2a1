# Everything starts from `make help`. CI calls the same targets as people do.

SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.set-up
# pytest's workers; each starts a Postgres of its own.
WORKERS ?= 2
# What of the suite `make replay` runs.
TESTS ?= tests
PYTEST := $(PY) -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup run test replay lint format bench peers chaos rules alerts-test compose-test sbom build lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## Make .venv and install the locked dependencies; does nothing when that is done

$(STAMP): requirements-dev.lock pyproject.toml .ci/setup
	@.ci/setup $(VENV)
	@touch $@

run: $(STAMP) ## Start the whole platform in the foreground; Ctrl-C stops all of it
	@exec $(VENV)/bin/perdure up

test: $(STAMP) ## Run the whole test suite against real servers on free ports
	@$(PYTEST) -n $(WORKERS)

replay: $(STAMP) ## Run the test suite with every run replayed from its journal at every await (TESTS=... a part of it)
	@$(PYTEST) -n $(WORKERS) --perdure-always-replay $(TESTS)

lint: $(STAMP) ## Check style, types and import rules
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

format: $(STAMP) ## Format the code and fix what can be fixed
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(STAMP) ## Measure this machine and the engine on it; takes about three minutes
	@$(PY) -m benchmarks
	@$(PY) -m benchmarks.engine

peers: $(STAMP) ## The engine and the agents beside DBOS and LangGraph, which go into .venv-peers
	@test -x .venv-peers/bin/python || $(PY) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install --disable-pip-version-check --quiet --require-hashes -r requirements-peers.lock
	@$(PY) -m benchmarks.engine --peers .venv-peers/bin/python
	@$(PY) -m benchmarks.agents --peers .venv-peers/bin/python

chaos: $(STAMP) ## Kill servers and processes under load, and check that nothing was lost
	@PERDURE_CHAOS_CHANGES=$${PERDURE_CHAOS_CHANGES:-2000} PERDURE_CHAOS_TAKEOVERS=$${PERDURE_CHAOS_TAKEOVERS:-30} \
	  PERDURE_CHAOS_TAKEOVER_PAUSE=$${PERDURE_CHAOS_TAKEOVER_PAUSE:-1} PERDURE_ALL_KILLS=1 \
	  PERDURE_CHAOS_REDIS_CHANGES=$${PERDURE_CHAOS_REDIS_CHANGES:-2000} PERDURE_CHAOS_OVERLOAD_SECONDS=$${PERDURE_CHAOS_OVERLOAD_SECONDS:-60} \
	  $(PYTEST) --timeout=900 tests/chaos tests/integration/test_agent_kills.py

rules: ## Check the rules for alerts (needs promtool: Debian's package prometheus)
	@promtool check rules deploy/prometheus/rules/perdure.yml
	@promtool check config deploy/prometheus/prometheus.yml
	@promtool test rules deploy/prometheus/tests/perdure.yml

alerts-test: $(STAMP) ## Make the fault of each alert on a real platform, and see Prometheus fire (needs Debian's package prometheus)
	@$(PY) -m tests.alerts

compose-test: $(STAMP) ## Run docker-compose.yml for real, with Docker or podman, and look at what it does
	@$(PY) -m tests.compose

sbom: $(STAMP) ## Write what the image is made of, as CycloneDX, into dist/sbom.cdx.json
	@mkdir -p dist
	@$(PY) deploy/sbom.py > dist/sbom.cdx.json

build: $(STAMP) ## Build the wheel into dist/
	$(PY) -m build --wheel --no-isolation

lock: ## Resolve the dependencies anew into the lock files (needs uv)
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --upgrade --custom-compile-command 'make lock' --quiet -o requirements.lock
	uv pip compile pyproject.toml --all-extras --group dev --constraint requirements.lock --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --upgrade --custom-compile-command 'make lock' --quiet -o requirements-dev.lock
	uv pip compile --group peers --universal --python-version 3.11 --generate-hashes --no-emit-index-url --upgrade \
	  --custom-compile-command 'make lock' --quiet -o requirements-peers.lock

clean: ## Remove .venv, caches and built files; the data in .perdure stay
	rm -rf $(VENV) .venv-peers dist build .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
