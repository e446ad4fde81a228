# Everything a contributor runs, on a machine that has Python 3.11+, its venv module and make.
# `make help` lists the targets. Each installs what it needs, and no more, into .venv beside this file.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable
# Folders, not dotted names: to find `pyraftkv.core` coverage would import `pyraftkv` and forget that it did, and then
# asyncio is there twice, with two CancelledErrors that do not catch each other.
COVERED := --cov=pyraftkv/core --cov=pyraftkv/log --cov=pyraftkv/store --cov-branch --cov-report=term

# As many at a time as there are cores (ARGS="-n 0": one after the other, where a debugger works).
WORKERS := -n auto --maxprocesses=8 --dist worksteal

# The tests start hundreds of processes; without bytecode each would compile the library anew, for most of a second.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test mutants lint format bench soak clean
.DELETE_ON_ERROR:

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-cli ## Start three nodes, kill the leader, watch it heal (ARGS="--help" for more)
	@$(BIN)/python -m pyraftkv demo $(ARGS)

test: $(VENV)/.installed-test ## Run every test, with the branch coverage of core, log and store
	@$(BIN)/python -m pytest $(WORKERS) $(COVERED) $(ARGS)

mutants: $(VENV)/.installed-test ## Break our own code one rule at a time, and see each noticed (ARGS="--list" for which)
	@$(BIN)/python -m tests.mutants $(ARGS)

lint: $(VENV)/.installed-lint ## Check style, formatting and types; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "$(BIN)/mypy, and $(BIN)/pyright beside it"
	@$(BIN)/pyright >$(VENV)/pyright.txt 2>&1 & pid=$$!; status=0; \
	    $(BIN)/mypy || status=1; wait $$pid || status=1; cat $(VENV)/pyright.txt; exit $$status

format: $(VENV)/.installed-lint ## Format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-bench ## Measure replicated puts, beside a real etcd and PySyncObj
	@$(BIN)/python -m tests.bench $(ARGS)

soak: $(VENV)/.installed-test ## Run the random tests long; with MINUTES=60, go on with the simulator's seeds for an hour
	@$(BIN)/python -m $(if $(MINUTES),tests.soak --minutes $(MINUTES),pytest --soak --timeout=3600) $(ARGS)
	@$(if $(MINUTES),$(BIN)/python -m tests.soak.etcd)
	@$(if $(MINUTES),$(BIN)/python -m tests.soak.crashes)

clean: ## Remove the virtual environment, caches and reports
	rm -rf $(VENV) build dist htmlcov bench-results .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment that works is kept, whoever made it; half of one (venv without ensurepip leaves that) is not.
$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { echo "There is no '$(PYTHON)' here. Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "pyraftkv needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; \
	    exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
	    echo "Could not make $(VENV). On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@touch $@

# One stamp per set of extras; a change of pyproject.toml installs again.
$(VENV)/.installed-cli: $(VENV)/.made pyproject.toml
	@$(PIP) '.[cli]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.made pyproject.toml
	@$(PIP) '.[cli,test]'
	@touch $@

# It has what the two above have.
$(VENV)/.installed-lint: $(VENV)/.made pyproject.toml
	@$(PIP) '.[cli,uvloop,test,lint]'
	@touch $(VENV)/.installed-cli $(VENV)/.installed-test $@

$(VENV)/.installed-bench: $(VENV)/.made pyproject.toml
	@$(PIP) '.[cli,uvloop,bench]'
	@touch $@
