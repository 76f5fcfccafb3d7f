# Two commands for a newcomer: `make demo` and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# uv installs in parallel, but looks for local wheels only where it is told.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: install demo test benchmark site ui lint clean stack stack-down stack-test

.venv/.installed: pyproject.toml infra/constraints.txt
	@echo "setting up .venv (a minute or two, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet -c infra/constraints.txt torch uv 2>.venv/pip.log || { cat .venv/pip.log; exit 1; }
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet -c infra/constraints.txt -e '.[pipelines]'
	@touch $@

.venv/.installed-test: .venv/.installed Makefile
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet -c infra/constraints.txt -e '.[test]'
	@# Ours is held against single files of these; what they themselves depend on is not wanted.
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps torch-fidelity==0.4.0 clean-fid==0.1.35 prdc==0.2
	@touch $@

install: .venv/.installed  ## what the commands need, in .venv

demo: .venv/.installed  ## the whole pipeline on real images, on this machine
	@$(BIN)/python pipelines/workflow.py digits

# Side by side, the longest first: those that need no Ray; then the others, each process with a Ray of its own, which
# mostly waits for processes to start.
LONG := tests/integration/test_pipeline.py tests/integration/test_killed.py
test: .venv/.installed-test lint  ## every test that this machine can run
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations=10 tests/golden $(filter-out tests/golden tests/integration tests/benchmarks %.py %/__pycache__,$(wildcard tests/*))
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=10 $(LONG) $(filter-out $(LONG),$(wildcard tests/integration/test_*.py))

.venv/.installed-stack: .venv/.installed-test
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet -c infra/constraints.txt -e '.[server]'
	@touch $@

stack: .venv/.installed-stack  ## S3, PostgreSQL, MLflow and three Ray nodes of their own, on this machine; asks for root
	@$(SUDO) $(BIN)/python infra/stack/stack.py up

stack-down:  ## nothing is left of them, data included
	@$(SUDO) $(BIN)/python infra/stack/stack.py down

stack-test: .venv/.installed-stack  ## the whole pipeline there, while each part of it is killed
	@$(SUDO) $(BIN)/python tests/distributed/stack_kills.py

lint: .venv/.installed-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

benchmark: .venv/.installed-test  ## the network's speed beside diffusers', half an hour
	@$(BIN)/python tests/benchmarks/speed.py

site: .venv/.installed-test  ## README and docs as pages, in build/site
	@$(BIN)/sphinx-build -b html -c docs/site -W --keep-going -q . build/site
	@echo "build/site/README.html"

ui: .venv/.installed  ## MLflow's page on the default store
	@$(BIN)/python pipelines/ui.py

clean:
	rm -rf .venv
