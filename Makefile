# The project's commands over plain venv and pip. `make demo` and `make test` work from a bare checkout.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
# The tests start hundreds of Pythons: without its bytecode kept, each would compile what it imports.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-e2e test-browser test-chaos test-real-engine test-cross-check rig lint format bench soak clean

demo: $(VENV)/.installed
	@$(BIN)/tuna demo

# Four files at a time: most of them wait for processes. What takes longer has a stage of its own, below.
PYTEST := $(BIN)/python -m pytest -p no:nbmake
SLOWER := e2e or browser or chaos or real_engine or rig or cross_check
test: $(VENV)/.installed-test
	$(PYTEST) -n 4 --dist loadfile -m "not ($(SLOWER))" $(PYTEST_ARGS)

# Whole deployments: from the command to the last process gone, routers on machines over SSH, notebooks executed.
test-e2e: $(VENV)/.installed-test
	$(PYTEST) -n 4 --dist loadfile -m e2e $(PYTEST_ARGS)

# JupyterLab and Notebook 7 in a real headless Chromium.
test-browser: $(VENV)/.installed-test
	$(PYTEST) -m browser $(PYTEST_ARGS)

# Real processes killed under load, and at every line of a deploy.
test-chaos: $(VENV)/.installed-test
	$(PYTEST) -m chaos $(PYTEST_ARGS)

# Real vLLM on CPU, in a venv of its own (2.5 GB on disk); see tests/real_engine/README.md.
test-real-engine: $(VENV)/.installed-test
	$(BIN)/python tests/real_engine/prepare.py
	$(PYTEST) -m real_engine $(PYTEST_ARGS) tests/real_engine

# Our load generator and aiperf on the same server of known speed; aiperf goes into an environment of its own (840 MB).
test-cross-check: $(VENV)/.installed-test
	$(PYTEST) -m cross_check -s $(PYTEST_ARGS) tests/benchmarks/test_cross_check.py

# Real SkyPilot before a pretended AWS whose machines are namespaces of this one; as root; see tests/rig/README.md.
# Each module has a cloud of its own, and waits half of the time: `make -j2 rig` for all of them.
RIG = vm places trouble hybrid skypilot
rig: $(RIG:%=rig-%)
rig-%: $(VENV)/.installed-test
	TUNA_RIG_RUN=$* $(BIN)/python -m tests.rig -s $(PYTEST_ARGS) tests/rig/test_$*.py

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
