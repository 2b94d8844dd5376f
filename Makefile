# `make demo` and `make test` set up .venv themselves when it is missing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test lint types clean

setup: $(STAMP)

# torch and torchvision come from one plain install, so that they are a matching pair
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e '.[dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/rpf curriculum --config configs/demo/curriculum.yaml
	$(BIN)/rpf evaluate --config configs/demo/evaluation.yaml

# two processes with one thread each: small tensors gain nothing from more
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

clean:
	rm -rf .venv runs .pytest_cache .ruff_cache .mypy_cache
