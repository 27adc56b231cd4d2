# Creates .venv and calls the CLI. `make` lists the targets, `minipc --help` lists everything else.
SHELL := /bin/bash
VENV := .venv
BACKEND ?= nspawn
READY := $(VENV)/.ready

.PHONY: help rehearse test test-long bench lint docs lock setup clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

rehearse: setup ## build a machine, use it, lose it, rebuild it from the off-site copy, report; ARGS=--keep keeps it
	$(VENV)/bin/minipc rehearse --backend $(BACKEND) $(ARGS)

test: setup ## the tests: static checks, unit, lab; what fits in 45 minutes on two cores
	$(VENV)/bin/minipc test $(ARGS)

test-long: setup ## fault tables, emulation, large data; stores a dated record
	$(VENV)/bin/minipc test --long $(ARGS)

bench: setup ## ratios against Ansible and plain shell, measured side by side in one run
	$(VENV)/bin/python -m bench $(ARGS)

lint: setup ## run the static checks: Python, spelling, shell, YAML, links, documentation site
	$(VENV)/bin/pre-commit run --all-files

docs: setup ## build the documentation site into site/
	$(VENV)/bin/mkdocs build --strict

lock: ## regenerate requirements.lock from pyproject.toml, with uv; ARGS=--upgrade takes the newest versions
	@command -v uv >/dev/null || { echo "uv is missing: pipx install uv"; exit 1; }
	uv pip compile --universal --python-version 3.11 --extra dev --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --quiet --output-file requirements.lock $(ARGS) pyproject.toml

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
