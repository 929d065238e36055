# Everything happens in .venv, which the targets make themselves and bring up to date only where something changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SOURCES := $(shell find messagedb_sa migrations -type f -not -path '*/__pycache__/*')
CHECKED := messagedb_sa migrations tests examples

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-8s %s\n", $$1, $$2 }'

.PHONY: demo
demo: $(VENV)/installed ## Start a PostgreSQL, install Message DB with Alembic, write and read, and clear it all away
	@$(BIN)/python examples/demo.py

.PHONY: test
test: $(VENV)/installed ## Run the tests against the installed package, on a throwaway PostgreSQL
	@$(BIN)/pytest $(PYTEST_ARGS)

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
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check ".[dev]"
	@rm -rf build *.egg-info
	@touch $@

# Installed as users get it, not linked: what the wheel lacks is then missing here too.
$(VENV)/installed: $(VENV)/dependencies $(SOURCES)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall .
	@rm -rf build *.egg-info
	@touch $@
