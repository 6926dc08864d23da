# Every target sets itself up: `make demo` works on a machine that has nothing but Python and make.

VENV   := .venv
RUN    := $(VENV)/bin/python
READY  := $(VENV)/.paceline-ready
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Test processes, one a core; each computes with one thread, more would only wait for each other.
JOBS   ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 8 ? n : 8)))
# What `make bench` measures; for example: make bench BENCH="--sizes pocket --limit 2"
BENCH  ?= --sizes 100m --limit 4 --json bench.json --markdown bench.md --plot bench.png

.PHONY: help demo test lint bench setup clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    one prompt, token for token against transformers, in a few minutes"
	@echo "make test    all tests"
	@echo "make lint    ruff and mypy"
	@echo "make bench   methods side by side, with a plot"

setup: $(READY)

# A complete environment is used as it is; anything less is created or completed.
$(READY): pyproject.toml constraints.txt
	@if ! $(RUN) .ci/complete.py 2>/dev/null; then \
		if [ ! -x $(RUN) ]; then \
			if [ -z "$(PYTHON)" ]; then echo "error: Python 3.11 or newer is needed" >&2; exit 1; fi; \
			$(PYTHON) -m venv $(VENV) || exit 1; \
		fi; \
		$(RUN) -m pip install --quiet -c constraints.txt -e ".[dev]" || exit 1; \
	fi
	@touch $@

demo: $(READY)
	@$(VENV)/bin/paceline demo

test: $(READY)
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS)

lint: $(READY)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy

bench: $(READY)
	@$(VENV)/bin/paceline bench $(BENCH)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
