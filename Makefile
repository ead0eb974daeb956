# Every target sets itself up: a fresh machine needs only Python 3.11+, git and make.
# Installed once, and again only when pyproject.toml or constraints.txt changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

PROTO_OUT ?= .
# What some tests start as child processes of their own.
SYSTEM_PACKAGES := mosquitto postgresql

.PHONY: help run test test-faults test-story setup-system check proto format bench clean
help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	@# First and by itself: pip then takes the CPU build where it finds one, before others ask for any build.
	$(PIP) torch
	$(PIP) -e '.[dev]'
	@touch $@

setup-system:  ## as root on Debian: the packages that some tests need (they are skipped without)
	@missing=; for name in $(SYSTEM_PACKAGES); do \
		dpkg-query -W -f '$${Status}' $$name 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$name"; \
	done; \
	skipped="tests that find no$$missing are skipped, and say so"; \
	if [ -z "$$missing" ]; then echo "Nothing to do: $(SYSTEM_PACKAGES) are installed."; \
	elif ! command -v apt-get >/dev/null; then echo "There is no apt-get here: $$skipped."; \
	elif [ "$$(id -u)" != 0 ]; then echo "Only root may install packages (sudo make $@): $$skipped."; \
	elif apt-get -qq update && \
		DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing >/dev/null; \
	then echo "Installed:$$missing."; \
	else echo "apt-get could not install them, see above: $$skipped."; fi

run: $(STAMP)  ## the default experiment; its report is outputs/latest/report.html
	$(BIN)/python -m sim

test: $(STAMP)  ## every test but those of faults; of these one for each process
	$(BIN)/python -m pytest -m 'one_fault or not (faults or story)' -n 2 --dist loadfile --no-loadscope-reorder

test-story: $(STAMP)  ## the whole demo, from its command to its last line
	$(BIN)/python -m pytest -m story

test-faults: $(STAMP)  ## what is killed, cut, filled and flooded
	$(BIN)/python -m pytest -m faults

check: $(STAMP)  ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory proto PROTO_OUT=$(VENV)/proto >/dev/null
	@diff -r -x '__*' $(VENV)/proto/fedretrain/wire/v1 fedretrain/wire/v1 || \
		{ echo "proto/ and fedretrain/wire/v1 differ: run make proto"; exit 1; }

proto: $(STAMP)  ## the generated half of proto/
	@mkdir -p $(PROTO_OUT)
	$(BIN)/python -m grpc_tools.protoc -I fedretrain/wire/v1=proto/fedretrain/v1 --python_out=$(PROTO_OUT) \
		--pyi_out=$(PROTO_OUT) --grpc_python_out=$(PROTO_OUT) fedretrain/wire/v1/fleet.proto

format: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## every benchmark (sets up its peers' environments first)
	$(BIN)/python -m benchmarks

clean:  ## remove what the targets made
	rm -rf $(VENV) outputs mlruns dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
