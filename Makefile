# make demo | make test | make check | make bench: each installs what it needs first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# What every change must pass: a quarter of an hour to half an hour. The rest (managers that lose everything,
# long partitions, a stock kernel in an emulated machine) takes as long again: make test-all.
TESTS := tests/unit tests/trace tests/sim tests/netns tests/interop $(addprefix tests/lab/test_,\
  main_job.py refusals.py leftovers.py services.py network_options.py managers.py gossip_lab.py)

.PHONY: help demo demo-encrypted demo-docker test test-all retest check bench soak install clean
help:
	@echo "make demo    install what is missing and run the main job on a lab of three hosts (root)"
	@echo "make demo-encrypted  on an encrypted network, under a stock kernel in an emulated machine (HERE=1: under this kernel)"
	@echo "make demo-docker  the same with stock Docker engines in the cluster, and ours in theirs (root)"
	@echo "make test    install what is missing and run the tests (root)"
	@echo "make test-all  the same, and long faults, and a stock kernel under emulation"
	@echo "make check   format, lint, types, layering, spelling"
	@echo "make soak    simulated managers under every fault at once: SEEDS=1000 FIRST=0 (CORES=1: raft cores alone)"
	@echo "make bench   measurements, each as a ratio against a floor in the same run (root); ONLY=\"traffic encrypted\": of these"

$(STAMP): pyproject.toml deploy/build_stubs.py deploy/prepare.sh $(shell find proto -name '*.proto')
	@PYTHON=$(PYTHON) VENV=$(VENV) bash deploy/prepare.sh
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	@$(BIN)/swarm lab demo

demo-encrypted: $(STAMP)
	@if [ -n "$(HERE)" ]; then $(BIN)/swarm lab demo --encrypted; \
	else cd tests && PYTHONPATH=$(CURDIR)/tests $(CURDIR)/$(BIN)/python -m kernel.demo; fi

demo-docker: $(STAMP)
	@bash deploy/engine.sh
	@$(BIN)/swarm lab demo-docker

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell README.md CHANGELOG.md docs proto swarm manager agent deploy tests

test: $(STAMP)
	@bash deploy/engine.sh || echo "==> tests with a real Docker engine will be skipped"
	$(BIN)/pytest $(TESTS)

retest: $(STAMP)
	$(BIN)/pytest --last-failed --last-failed-no-failures none $(TESTS)

test-all: $(STAMP)
	@bash deploy/engine.sh || echo "==> tests with a real Docker engine will be skipped"
	$(BIN)/pytest

SEEDS ?= 1000
FIRST ?= 0
CORES ?=

soak: $(STAMP)
	@PYTHONPATH=tests $(BIN)/python -m support.managers.soak --seeds $(SEEDS) --first $(FIRST) $(if $(CORES),--cores)

ONLY ?=

bench: $(STAMP)
	$(BIN)/python -m tests.bench $(ONLY)

clean:
	rm -rf $(VENV) swarm/api/docker swarm/api/networkdb swarm/api/overswarm
