# Every target makes what it needs, on a machine that has Python (3.10 or later), pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo paper paper-gap paper-beyond paper-quick test test-slow lint format bench bench-alternatives wheel clean

demo: $(VENV)/installed-examples
	$(BIN)/python examples/quickstart.py

# The paper's tables and figures, an hour or two on two cores; stopped, it goes on where it was.
paper: $(VENV)/installed-examples
	$(BIN)/python -m examples.paper

# A target instead of a weight, and the gap in accuracy; as long again.
paper-gap: $(VENV)/installed-examples
	$(BIN)/python -m examples.paper.constraint
	$(BIN)/python -m examples.paper.decay
	$(BIN)/python -m examples.paper.gap
	$(BIN)/python -m examples.paper.cost
	$(BIN)/python -m examples.paper.page

# Other data, other networks.
paper-beyond: $(VENV)/installed-examples
	$(BIN)/python -m examples.paper.beyond
	$(BIN)/python -m examples.paper.page

# All of these on small digits, with hardly any training: two minutes.
paper-quick: $(VENV)/installed-examples
	$(BIN)/python -m examples.paper --quick

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# What takes long: a network from ImageNet audited, a compiler that writes C++.
test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed-dev
	$(BIN)/python -m tests.benchmarks

# What one would use instead, in an environment of its own, since escnn and tmeasures need an older numpy.
bench-alternatives: .venv-alternatives/installed
	.venv-alternatives/bin/python -m tests.benchmarks.alternatives.networks
	.venv-alternatives/bin/python -m tests.benchmarks.alternatives.measures

# Builds the wheel and imports it from outside the checkout.
wheel: $(VENV)/installed-dev
	rm -rf dist
	$(BIN)/python -m build --wheel
	.ci/smoke $(BIN)/python dist/*.whl

clean:
	rm -rf $(VENV) .venv-alternatives build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv-alternatives/installed: export PIP_CONSTRAINT :=
.venv-alternatives/installed: tests/benchmarks/alternatives/constraints.txt
	test -d .venv-alternatives || $(PYTHON) -m venv .venv-alternatives
	.venv-alternatives/bin/python -m pip install --quiet --no-deps --requirement $<
	touch $@

$(VENV)/installed-%: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@
