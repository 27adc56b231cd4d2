# Only bootstraps .venv and calls the CLI; `make help` lists the targets, `minipc --help` everything else.
SHELL := /bin/bash
VENV := .venv
BACKEND ?= nspawn
READY := $(VENV)/.ready

.PHONY: help rehearse test test-long bench lint setup clean
.DEFAULT_GOAL := rehearse

help: ## the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

rehearse: setup ## build a machine, use it, lose it, rebuild it from the off-site copy, report; ARGS=--keep keeps it
	$(VENV)/bin/minipc rehearse --backend $(BACKEND) $(ARGS)

test: setup ## the tests: static checks, unit, lab; what fits in 45 minutes on two cores
	$(VENV)/bin/minipc test $(ARGS)

test-long: setup ## fault tables, emulation, large data; stores a dated record
	$(VENV)/bin/minipc test --long $(ARGS)

bench: setup ## ratios against Ansible and plain shell, measured side by side in one run
	$(VENV)/bin/python -m bench $(ARGS)

lint: setup ## static checks: ruff, mypy
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

setup: $(READY) ## .venv from requirements.lock

$(READY): requirements.lock pyproject.toml
	@command -v python3 >/dev/null || { echo "python3 (3.11 or newer) is missing: apt-get install python3 python3-venv"; exit 1; }
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, this is $$(python3 --version)"; exit 1; }
	@if ! python3 -c 'import ensurepip' 2>/dev/null; then \
	  if [ "$$(id -u)" = 0 ]; then echo "installing python3-venv (apt)"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv </dev/null; \
	  else echo "python3-venv is missing: apt-get install python3-venv"; exit 1; fi; fi
	@echo "creating $(VENV) from requirements.lock (hashes enforced)"
	@python3 -m venv --clear $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@

clean: ## machines, namespaces and .venv; the cache stays
	-$(VENV)/bin/minipc lab down --all
	rm -rf $(VENV)
