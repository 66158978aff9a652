# make demo | make test | make check | make bench: each installs what it needs first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test check bench stubs install clean
help:
	@echo "make demo    install what is missing and run the main job on a lab of three hosts (root)"
	@echo "make test    install what is missing and run every test this machine can run (root)"
	@echo "make check   format, lint, types, layering, spelling"
	@echo "make bench   measurements, each as a ratio against a floor in the same run (root)"

$(STAMP): pyproject.toml deploy/build_stubs.py deploy/prepare.sh $(shell find proto -name '*.proto')
	@PYTHON=$(PYTHON) VENV=$(VENV) bash deploy/prepare.sh
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	@$(BIN)/swarm lab demo

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell README.md CHANGELOG.md docs proto swarm manager agent deploy tests

test: $(STAMP)
	$(BIN)/pytest

bench: $(STAMP)
	$(BIN)/python -m tests.bench

clean:
	rm -rf $(VENV) swarm/api/docker swarm/api/networkdb swarm/api/overswarm
