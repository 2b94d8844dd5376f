# `make demo` and `make test` set up .venv themselves when it is missing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo table2 test floors coverage lint types docs clean

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

# the fast tests on the lowest releases that pyproject.toml allows, in an environment of its own (7 GB)
FLOORS := .venv-floors/bin
floors:
	test -x $(FLOORS)/python || $(PYTHON) -m venv .venv-floors
	$(FLOORS)/python -m pip install --upgrade uv
	$(FLOORS)/uv pip install --python $(FLOORS)/python --resolution lowest-direct -e '.[dev]'
	OMP_NUM_THREADS=1 $(FLOORS)/python -m pytest -n 2 --dist loadscope -m "not slow"

coverage: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --cov

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# a broken link or a name that a docstring does not have is an error
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-floors runs site .pytest_cache .ruff_cache .mypy_cache
