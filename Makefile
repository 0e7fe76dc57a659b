# From a clean clone, with Linux and Python 3.11 or newer:
#
#     make demo     grows the model that the repository carries
#     make test     runs the tests
#
# Both build .venv on first use. `make PYTHON=python3.12 demo` takes another interpreter.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Stamps: an install runs again only when one of the two files that describe it has changed.
CREATED := $(VENV)/.created
RUNTIME := $(VENV)/.installed
DEV     := $(VENV)/.installed-dev
INPUTS  := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo finetune-demo test lint models install install-dev clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(RUNTIME)  ## grow models/lenet4.onnx by one layer, into demo/lenet5.onnx
	@mkdir -p demo
	$(BIN)/onnx-compnet grow models/lenet4.onnx --after conv1 --candidates 40 -o demo/lenet5.onnx --data models/fashion_mnist_calibration.npz --scale 1/255 --force

finetune-demo: demo  ## train that layer's network on Fashion-MNIST (two minutes), into demo/lenet5_tuned.onnx
	$(BIN)/python models/fashion_mnist.py demo
	$(BIN)/onnx-compnet finetune demo/lenet5.onnx --data demo/train.npz --val demo/val.npz --scale 1/255 --augment flip --epochs 2 --lr 1e-3 --batch-size 128 --parent models/lenet4.onnx -o demo/lenet5_tuned.onnx --force

test: $(DEV)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

lint: $(DEV)  ## style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

models: $(DEV)  ## train LeNet4 again and rewrite models/ (about six minutes)
	$(BIN)/python models/train_lenet4.py

install: $(RUNTIME)  ## make .venv with what the tool needs
install-dev: $(DEV)  ## make .venv with the developers' tools too

clean:  ## remove .venv, demo/ and caches
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(CREATED):
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: '$(PYTHON)' was not found. Install Python 3.11 or newer, or give one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Give another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(RUNTIME): $(INPUTS) | $(CREATED)
	@echo "Installing into $(VENV). torch is large: the first time takes some minutes."
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(DEV): $(INPUTS) | $(CREATED)
	@echo "Installing into $(VENV), with the developers' tools. torch is large: the first time takes some minutes."
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(RUNTIME) $@
