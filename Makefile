# Two commands do everything from an empty checkout: `make up` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash

.PHONY: up test faults soak mutants lint bench requirements clean

$(VENV)/.production: requirements.txt
	@test -x $(BIN)/python || $$(command -v $(PYTHON) || command -v python3) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

$(VENV)/.development: requirements-dev.txt $(VENV)/.production
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

# The main job on an empty machine: SQLite and files in .byteor/, a demo tenant with real agents.
up: $(VENV)/.production
	@$(BIN)/python manage.py up --demo

# Everything once on SQLite; what touches the database's own ways again on PostgreSQL; browser and fault tests once.
test: $(VENV)/.development
	@$(BIN)/python -m tests.run

# Every fault point on both databases; `make test` has each on one of them.
faults: $(VENV)/.development
	@BYTEOR_FAULTS_EVERY=1 $(BIN)/python -m tests.run faults

# What the suite has in a short form, at length: an hour or more.
soak: $(VENV)/.development
	@$(BIN)/python -m tests.soak

# Changes one place of a module at a time and looks whether a test fails: hours. `MUTANTS=20` tries 20 places of each module.
mutants: $(VENV)/.development
	@$(BIN)/python -m tests.mutants $(ONLY)

lint: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/djlint templates --check --quiet
	$(BIN)/djlint templates --lint --quiet
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m tests.checks

# Measurements are ratios in one run and never part of the tests.
bench: $(VENV)/.development
	@$(BIN)/python -m bench

requirements: $(VENV)/.development
	$(BIN)/pip-compile -q --generate-hashes --allow-unsafe --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --strip-extras requirements.in -o requirements.txt
	$(BIN)/pip-compile -q --generate-hashes --allow-unsafe --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --strip-extras requirements-dev.in -o requirements-dev.txt

clean:
	rm -rf $(VENV) .byteor .pytest_cache .mypy_cache .ruff_cache
