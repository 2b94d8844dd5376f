# `make demo` and `make test` set up .venv themselves when it is missing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo table2 test lint types clean

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

# Table 2 of the paper at 16 -> 64: four models on a folder that `rpf prepare` has written; goes on where it was stopped
DATA ?= prepared
TABLE2 := $(BIN)/rpf curriculum --data.init_args.root $(DATA) --config configs/table2
table2: setup
	$(TABLE2)/curriculum.yaml
	$(TABLE2)/curriculum.yaml --config configs/table2/without_reference.yaml --model_dir runs/table2/without_reference
	$(TABLE2)/curriculum.yaml --config configs/table2/without_mask.yaml --model_dir runs/table2/without_mask
	$(TABLE2)/without_progressive.yaml
	$(BIN)/rpf evaluate --config configs/table2/evaluation.yaml --data.init_args.root $(DATA)

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
