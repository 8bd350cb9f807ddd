# Every target does its own set-up: the first one that needs Python creates .venv and fills it from
# requirements.lock; later ones reuse it until the lock or pyproject.toml changes.

PYTHON ?= python3
# Extra options for the tools, e.g.  make book BOOKFLAGS="-W --keep-going"  or  make test TESTFLAGS="-x -n0"
BOOKFLAGS ?=
TESTFLAGS ?=
LOCKFLAGS ?=

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup book test slow lint lock clean distclean

venv := .venv
python := $(venv)/bin/python
# First on PATH, so that tools and notebook kernels are this environment's, whatever else the machine has.
# (PYDEVD_...: a kernel says at every start that it cannot debug Python's own modules.)
run := PATH="$(CURDIR)/$(venv)/bin:$$PATH" VIRTUAL_ENV="$(CURDIR)/$(venv)" JUPYTER_PREFER_ENV_PATH=1 \
  PYDEVD_DISABLE_FILE_VALIDATION=1
pip := $(python) -m pip install -qq --disable-pip-version-check --root-user-action ignore
# A process for each core, and each file of tests or notebook in one of them, in order.
spread := -q -n auto --maxprocesses 8 --dist loadfile

help:
	@echo "make book     build the book and print the path of its first page"
	@echo "make test     run the tests and the notebooks, a process for each core"
	@echo "make slow     run the longest tests, which make test leaves out"
	@echo "make lint     check the code's style and types"
	@echo "make setup    only create .venv"
	@echo "make lock     resolve requirements.lock anew from pyproject.toml (needs a network;"
	@echo "              LOCKFLAGS=--upgrade takes the newest versions that pyproject.toml allows)"
	@echo "make clean    remove what was built; make distclean removes .venv as well"
	@echo
	@echo "PYTHON=python3.12 chooses the interpreter for a new .venv (3.11 or newer)."

# --all, because a page whose notebook has not changed would keep the figures of an older package.
book: setup
	$(run) jupyter-book build --all $(BOOKFLAGS) book
	@echo "The book is built. Open this page:"
	@echo "  $(CURDIR)/book/_build/html/index.html"

test: setup
	$(run) python -m pytest --nbval-lax $(spread) $(TESTFLAGS)

slow: setup
	$(run) python -m pytest -m slow -rs $(spread) $(TESTFLAGS)

lint: setup
	$(run) python -m ruff check .
	$(run) python -m mypy

setup: $(venv)/.package-installed

# The stamps are written last, so an interrupted set-up is started over. A changed lock empties the
# environment first: a package that is no longer in the lock must not stay behind.
$(venv)/.lock-installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "grokutils needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Creating $(venv) from requirements.lock: $$(grep -c == requirements.lock) packages (once; a few minutes)"
	@$(PYTHON) -m venv --clear $(venv) || { \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(pip) -r requirements.lock
	@touch $@

# Installed in place. The build tools are in the lock already, so nothing else is fetched.
$(venv)/.package-installed: $(venv)/.lock-installed pyproject.toml
	$(pip) --no-deps --no-build-isolation -e .
	@touch $@

# uv, because pip cannot resolve for every platform at once; its options are in pyproject.toml.
lock:
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	$(PYTHON) -m venv "$$tmp/env"; \
	"$$tmp/env/bin/python" -m pip install --disable-pip-version-check --quiet uv==0.13.9; \
	sed -n '/^#/p' requirements.lock > "$$tmp/head"; \
	cp requirements.lock "$$tmp/lock"; \
	"$$tmp/env/bin/uv" pip compile --quiet --no-header $(LOCKFLAGS) pyproject.toml -o "$$tmp/lock" > /dev/null; \
	cat "$$tmp/head" "$$tmp/lock" > requirements.lock; \
	echo "requirements.lock: $$(grep -c == requirements.lock) packages"

clean:
	rm -rf book/_build build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find grokutils tests benchmarks notebooks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean
	rm -rf $(venv)
