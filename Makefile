# Two commands for a stranger: `make demo` and `make test`; `make check` is the quick part of the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-input
# Another source of torch, such as https://download.pytorch.org/whl/cpu for a much smaller build without CUDA.
TORCH_INDEX ?=
# Test processes; each computes with one thread, so that two processes on two cores do not fight for them.
JOBS ?= 2

# Seconds that a command took, installation aside; `date` is all it needs.
TIMED = started=$$(date +%s); trap 'echo "$@: $$(($$(date +%s) - started)) s"' EXIT;
# Compiled tests are kept (an empty PYTHONDONTWRITEBYTECODE), as reading them anew takes each process ten seconds.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist loadfile

.PHONY: install demo check test lint coverage format docs clean

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "medunet needs Python 3.11 or newer; say make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: any other way of asking for it can pull another version and gigabytes of CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $$(grep '^torch==' constraints.txt)
	$(PIP) -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(PIP) -c constraints.txt -e '.[demo,test]'
	touch $@

$(VENV)/.documented: $(VENV)/.installed
	$(PIP) -c constraints.txt -e '.[demo,docs]'
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/medunet demo --overwrite

# Format, lint, types and the quick tests: for every change, before it is committed.
check: $(VENV)/.tested
	@$(TIMED) $(MAKE) --no-print-directory lint && $(PYTEST) -m "not slow" --durations=0 --durations-min=3

# The same with every test; continuous integration runs it.
test: $(VENV)/.tested
	@$(TIMED) $(MAKE) --no-print-directory lint && $(PYTEST)

lint: $(VENV)/.tested
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	$(BIN)/pre-commit validate-config

# Lines and branches that the tests reach, those in processes of their own included.
coverage: $(VENV)/.tested
	@$(TIMED) $(PYTEST) --cov=medunet --cov-branch --cov-report=term:skip-covered

format: $(VENV)/.tested
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The site, with the picture of the house drawn anew; warnings are errors, and links inside are checked.
docs: $(VENV)/.documented
	$(BIN)/python docs/draw_house.py
	@started=$$(date +%s); $(BIN)/sphinx-build -W --keep-going -n -q -E -d build/doctrees docs build/docs \
		&& echo "build/docs/index.html: built in $$(($$(date +%s) - started)) s"

# Runs and their models are left alone: they may be hours of work.
clean:
	rm -rf $(VENV) demo tutorial_output build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
