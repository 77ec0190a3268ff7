# Two commands on a fresh machine: `make report` and `make test`. Python 3.10 or newer and make are all they need.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	&& { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
LEGACY := .venv-legacy
WORKERS ?= 2
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: docs notebooks report test test-slow coverage test-real test-legacy lint check reliability matrix audit bench clean

report: $(VENV)/.installed  ## the main job on the embedded model; prints where report.html is
	$(BIN)/refusal-lens run organism --out runs/organism

test: $(VENV)/.test  ## the tests of a few seconds each, in a few minutes
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --ignore tests/real -m "not slow"

test-slow: $(VENV)/.test  ## the others but the nightly ones: notebooks, analyses, Ray clusters, kills, fuzzing, memory
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --ignore tests/real -m slow

coverage: $(VENV)/.test  ## both, with the share of lines that they run, by module
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --ignore tests/real --cov=refusal_lens --cov-report=term

test-real: $(VENV)/.test  ## the main job on the real chat model that REFUSAL_LENS_REAL_MODEL names
	OMP_NUM_THREADS=$$(getconf _NPROCESSORS_ONLN) $(BIN)/python -m pytest tests/real

test-legacy: $(LEGACY)/.installed  ## the wrapper's tests on HookedTransformer under transformer-lens 3.9
	$(LEGACY)/bin/python -m pytest -n $(WORKERS) --dist loadfile tests/legacy

lint: $(VENV)/.dev  ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

reliability: $(VENV)/.test  ## the nightly tests (an hour), and the table in docs/reliability.md
	$(BIN)/python -m pytest --nightly tests/reliability tests/organism
	$(BIN)/python -m tests.reliability.outcomes

matrix: $(VENV)/.test  ## what versions can break, under the lowest and the newest versions that resolve
	scripts/matrix.sh

audit: $(VENV)/.test  ## known vulnerabilities and licences of everything installed
	scripts/supply_chain.sh

# What is not timed runs side by side; the tests each alone, in this order also under -j: they are timed, and the real
# model takes all cores. `matrix` runs the tests of test-legacy under the lowest versions.
check:  ## all of what CI runs (.ci/run runs this); the real model's tests where REFUSAL_LENS_REAL_MODEL names one
	@set -e; begin=$$(date +%s); $(MAKE) -j2 lint docs audit; echo "lint docs audit: $$(($$(date +%s) - begin)) s"; \
	for target in matrix test test-slow $(if $(REFUSAL_LENS_REAL_MODEL),test-real); do \
	begin=$$(date +%s); $(MAKE) $$target; echo "$$target: $$(($$(date +%s) - begin)) s"; done
	@[ -n "$(REFUSAL_LENS_REAL_MODEL)" ] || echo "the real model was left out: set REFUSAL_LENS_REAL_MODEL to a chat model"

docs: $(VENV)/.dev  ## the site, in build/site; a warning is an error (one thread: other targets run beside it)
	OMP_NUM_THREADS=1 NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site

notebooks: $(VENV)/.test  ## run the notebooks from their sources, with a picture beside each interactive figure
	$(BIN)/python notebooks/build.py notebooks/0*.py

bench: $(VENV)/.test  ## speed beside a plain implementation of the paper's algorithm
	$(BIN)/python -m benchmarks --out benchmarks/results

# torch goes first: a plain install of the rest would take its largest build.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.10 or newer is needed; name it with make PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt torch
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.installed
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e ".[test]"
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e ".[test,dev,docs]"
	@touch $@

$(LEGACY)/.installed: pyproject.toml constraints-legacy.txt
	test -x $(LEGACY)/bin/python || $(PYTHON) -m venv $(LEGACY)
	$(LEGACY)/bin/python $(PIP_INSTALL) -c constraints-legacy.txt torch
	$(LEGACY)/bin/python $(PIP_INSTALL) -c constraints-legacy.txt -e . pytest pytest-timeout pytest-xdist beartype
	@touch $@

clean:
	rm -rf $(VENV) $(LEGACY) .venv-matrix .venv-audit runs build dist *.egg-info
