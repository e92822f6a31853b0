# Needs make and Python 3.11 or newer. `make` alone lists the targets.
#
# Two environments, made when first needed and renewed when pyproject.toml or constraints.txt change:
# .venv-run holds what the page needs (a few megabytes), .venv also holds torch and the tools.

# make PYTHON=python3.12 ...           uses that Python; else the first of CANDIDATES that is new enough
# make run ARGS="--port 9000 --open"   hands more arguments to `gradaccum serve`

CANDIDATES = $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)
DEV := .venv/bin
# The whole suite, in which every `raise` of the package has to be reached. Two files at a time: they wait for children.
# In the order of tests/conftest.py, the longest first; by itself pytest-xdist would begin with those of most tests.
SUITE = $(DEV)/python -m pytest -p tests.structure.every_raise -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help run site test test-all check fast lint format bench accuracy browser engine deepspeed clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

run: .venv-run/ready ## the live page, on this machine only; prints its address
	@.venv-run/bin/gradaccum serve $(ARGS)

site: .venv-run/ready ## the page as static files in ./site, for any host; `make site DIR=public` names another folder
	@.venv-run/bin/gradaccum site build "$(or $(DIR),site)" $(ARGS)

test: .venv/ready browser engine ## all tests but the big matrices
	$(SUITE) -m "not full"

test-all: .venv/ready browser engine deepspeed ## all tests, and ten times as many examples of each property
	$(SUITE) --hypothesis-profile=thorough

check: lint fast ## lint, types and the fast tests, in under a minute

fast: .venv/ready ## the fast tests alone
	$(DEV)/python -m pytest -m "not slow and not full and not gpu"

lint: .venv/ready ## ruff and mypy
	$(DEV)/ruff check
	$(DEV)/ruff format --check
	$(DEV)/mypy

format: .venv/ready ## rewrite the source in the house's format
	$(DEV)/ruff check --fix
	$(DEV)/ruff format

bench: .venv/ready browser engine ## the measurements, each against its peers
	@for script in benchmarks/bench_*.py; do \
	    echo "$$script"; $(DEV)/python -m "benchmarks.$$(basename "$$script" .py)" || exit 1; \
	done

accuracy: .venv/ready ## predicted memory beside measured memory: the table, the picture and the evidence of `fit`
	@$(DEV)/python -m benchmarks.accuracy $(ARGS)

clean: ## remove the environments and everything that a tool has built or cached
	rm -rf .venv .venv-run build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .cache
	find src tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# A browser for the page's tests: one that is there, or Playwright's. Without one they are skipped, and say so.
browser: .venv/ready
	@$(DEV)/python -m tests.browser

# The engine of the static page: kept from before, or fetched. Without it its tests are skipped, and say so.
engine: .venv/ready
	@$(DEV)/python -m tests.engine

# DeepSpeed, in a folder of its own, for the full matrices alone.
deepspeed: .venv/ready
	@$(DEV)/python -m tests.deepspeed

# Dependency groups need pip 25.1; a new environment may hold an older one.
.venv/ready: pyproject.toml constraints.txt
	@sh -c "$$environment" - .venv --upgrade "pip>=25.1"
	@sh -c "$$environment" - .venv --editable ".[all]" --group dev
	@touch $@

.venv-run/ready: pyproject.toml constraints.txt
	@sh -c "$$environment" - .venv-run --editable ".[web]"
	@touch $@

# Makes the environment $1 where there is none, and installs into it what the other arguments name.
.venv/ready .venv-run/ready: export environment = $(install_into)
define install_into
set -eu
folder=$$1; shift
stop() { printf 'gradaccum: %s\n' "$$@" >&2; exit 1; }
if ! "$$folder/bin/python" -c '' 2>/dev/null; then
    for python in $(CANDIDATES) none; do
        "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    done
    [ "$$python" != none ] || stop \
        'Python 3.11 or newer is needed. Tried without success: $(CANDIDATES).' \
        'Install one (Debian, Ubuntu: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python'
    "$$python" -c 'import ensurepip, venv' 2>/dev/null || stop \
        "$$python cannot make an environment: its modules venv and ensurepip are missing." \
        'Debian and Ubuntu keep them in a package of their own: apt install python3-venv'
    echo "Making $$folder with $$("$$python" --version)"
    "$$python" -m venv --clear "$$folder"
fi
pip() { "$$folder/bin/python" -m pip --disable-pip-version-check "$$@"; }
echo "Installing into $$folder:" "$$@"
pip install --quiet --constraint constraints.txt "$$@" && exit
pip --retries 0 --timeout 10 download --quiet --no-deps --no-cache-dir --dest "$$folder/probe" pip >/dev/null 2>&1 ||
    stop 'PyPI (or the package index of your pip settings) cannot be reached from here, so nothing was installed.'
stop 'The packages could not be installed; what pip says stands above.'
endef
