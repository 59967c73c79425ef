# The project's commands over plain venv and pip. `make demo` and `make test` work from a bare checkout.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-real-engine rig lint format bench soak clean

demo: $(VENV)/.installed
	@$(BIN)/tuna demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "not real_engine and not rig" $(PYTEST_ARGS)

# Real vLLM on CPU, in a venv of its own (2.5 GB on disk); see tests/real_engine/README.md.
test-real-engine: $(VENV)/.installed-test
	$(BIN)/python tests/real_engine/prepare.py
	$(BIN)/python -m pytest -m real_engine $(PYTEST_ARGS) tests/real_engine

# Real SkyPilot before a pretended AWS whose machines are namespaces of this one; as root; see tests/rig/README.md.
rig: $(VENV)/.installed-test
	$(BIN)/python -m tests.rig $(PYTEST_ARGS)

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-test
	$(BIN)/python -m tests.bench

# A spot engine killed each second for an hour, under two hundred streams; `make soak SECONDS=600` for less.
SECONDS ?= 3600
soak: $(VENV)/.installed-test
	$(BIN)/python -m tests.chaos.preemptions --seconds $(SECONDS)

clean:
	rm -rf $(VENV) .venv-vllm

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp per set of packages, made anew when what asks for them has changed.
$(VENV)/.installed: pyproject.toml router/pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ./router -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ./router -e '.[test]'
	@touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ./router -e '.[test,lint]'
	@touch $@
