# Every target sets up what it needs; required: Python 3.11 to 3.13, make, git, a package index.
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11,\
	$(shell $(python) -c '$(SUITABLE)' 2>/dev/null && echo $(python))))
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo test test-long test-fast lint types docs pictures policies wheel install clean

demo: $(INSTALLED)  ## learn a policy on handwritten digits, in two to three minutes on two cores
	$(BIN)/ohl-accel search digits run.overwrite=true

test: lint types  ## what CI checks, except the wheel in an empty environment
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m 'not long'

test-long: $(INSTALLED)  ## the tests that take minutes and are not part of CI
	$(BIN)/python -m pytest --numprocesses 2 --dist load -m long

test-fast: $(INSTALLED)  ## without the tests that take longer than ten seconds
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m 'not slow and not long'

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

docs: $(INSTALLED)  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pictures: $(INSTALLED)  ## the screenshots in docs/, of the run RUN (runs/digits); needs Chromium
	$(BIN)/python docs/pictures.py $(or $(RUN),runs/digits)

policies: $(INSTALLED)  ## the page of learned policies, in docs/
	$(BIN)/python docs/policies.py

wheel: $(INSTALLED)  ## build the wheel, install it into an empty environment (gigabytes), search and use a policy
	.ci/wheel $(BIN)/python

install: $(INSTALLED)  ## into .venv, from which everything else is run

$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 to 3.13 with venv found: install one, or name it: make PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs site
