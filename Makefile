# Two commands do everything: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile

.PHONY: demo test test-slow test-all lint docs format clean

demo: $(VENV)/.installed  ## Reconstruct with the shipped network; train one and test it
	$(BIN)/python eval.py --config=saved:weights/uniform1d_5x \
		--workdir=weights/uniform1d_5x --config.eval.out=runs/shipped
	$(BIN)/python -m kst_jax.reconstruct weights/uniform1d_5x demo:undersampled \
		runs/reconstructed --format=png
	$(BIN)/python -m kst_jax.reconstruct sense demo:coils runs/measured --format=png
	$(BIN)/python train.py --config=demo --workdir=runs/demo
	$(BIN)/python eval.py --config=demo --workdir=runs/demo

test: $(VENV)/.installed-dev  ## Run the tests, except for the slow ones
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.installed-dev  ## Run the slow tests: several processes, documents
	$(PYTEST) -m slow

test-all: test test-slow  ## Run every test

lint: $(VENV)/.installed-dev  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev  ## Build the site of docs/ in build/site
	$(BIN)/mkdocs build --strict --quiet

format: $(VENV)/.installed-dev  ## Mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the virtual environment; runs stay
	rm -rf $(VENV)

# Editable: the package and its commands are those of this clone.
$(VENV)/.installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@
