# make setup | demo | test | soak | lint    everything runs in .venv, which `setup` makes

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test soak lint docs

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/aria-finetune train recipes/tiny.yaml output.overwrite=true
	$(BIN)/aria-finetune evaluate recipes/tiny.yaml --adapter runs/tiny/adapter --output runs/tiny/evaluation --blank-images
	$(BIN)/aria-finetune merge runs/tiny/adapter runs/tiny/merged

docs: setup
	$(BIN)/python -m aria_finetune.format_help docs/formats

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A process for each core and a thread for each process: threads that wait for a core spin, and cost ten times more.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

# Every fault in full numbers: more than an hour on two cores. Figures that tests print are shown at the end.
soak: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --soak -rP \
		tests/faults tests/conversion tests/data/test_decoding.py tests/run/test_determinism.py tests/run/test_lora_options.py \
		tests/test_quantization.py
