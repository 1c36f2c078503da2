# Needs Python 3 and make; everything else comes from PyPI into .venv* beside this file.
# A target installs again only after pyproject.toml or this file has changed.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
AIRFLOW ?= apache-airflow>=3.3,<3.4
# A lane of tests/matrix.py, such as 2.11.0: its environment instead of .venv, for test and the live targets.
LANE ?=
# A constraints file for check-wheel and check-resolution, such as those of the MWAA images.
CONSTRAINTS ?=
PYTEST_ARGS ?=
# Which tests `make test` runs.
TESTS ?= tests
# Most tests wait for kernels: more of them than cores may run side by side.
TEST_PROCESSES ?= 3
STACK_PROCESSES ?= 3

VENV := .venv
UV := $(VENV)/bin/uv
READY := $(VENV)/.ready
# The Python that runs the tests.
TEST_PYTHON := $(if $(LANE),.venv-airflow/$(LANE),$(VENV))/bin/python
CONSTRAIN := $(if $(CONSTRAINTS),--constraint $(abspath $(CONSTRAINTS)))

# Without compiled modules each Airflow process takes 4 s longer to start.
unexport PYTHONDONTWRITEBYTECODE
unexport VIRTUAL_ENV

.PHONY: help
help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 18

$(UV):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --quiet --disable-pip-version-check uv
	touch $@

$(READY): $(UV) pyproject.toml Makefile
	$(UV) pip install --quiet --python $(VENV)/bin/python --editable '.[local]' \
	  --group demo --group test --group lint '$(AIRFLOW)'
	touch $@

# The Python of a version on this machine: $(call FIND_PYTHON,3.12).
COMMA := ,
FIND_PYTHON = \
  for candidate in python$(1) "$$($(UV) python find --system --no-python-downloads $(1) 2>/dev/null || true)" \
    "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$(1).*/bin/python $(PYTHON); do \
    if "$$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != ($(subst .,$(COMMA) ,$(1))))' >/dev/null 2>&1; then \
      "$$candidate" -c 'import sys; print(sys.executable)'; exit; \
    fi; \
  done; \
  echo 'There is no Python $(1) on this machine: install one as python$(1)' >&2; exit 1

.PHONY: lane
lane: $(READY) # Make the environment of LANE, if one is named
	$(if $(LANE),$(VENV)/bin/python tests/matrix.py --install $(LANE))

# With arguments of one's own, one plain run; else some side by side, since they wait more than they work, whole
# Airflows by threes, and what measures last, with the machine to itself.
RUN_TESTS = $(if $(PYTEST_ARGS),\
  $(TEST_PYTHON) -m pytest $(PYTEST_ARGS),\
  { $(TEST_PYTHON) -m pytest -m 'not alone and not stack' -n $(TEST_PROCESSES) --dist worksteal $(TESTS) || case $$? in \
    (5) ;; (1) $(AGAIN) ;; (*) exit 2 ;; esac; } \
  && { $(TEST_PYTHON) -m pytest -m stack -n $(STACK_PROCESSES) --dist worksteal $(TESTS) || $(IF_NONE); } \
  && { $(TEST_PYTHON) -m pytest -m alone $(TESTS) || $(IF_NONE); })
# Until five loaded runs in a row have passed: what failed beside other tests runs once more, alone.
AGAIN = echo '=== Some tests failed beside others: once more, alone' \
  && $(TEST_PYTHON) -m pytest -m 'not alone and not stack' --last-failed --last-failed-no-failures none --maxfail 1 $(TESTS)
# Not all folders have such tests.
IF_NONE = [[ $$? == 5 ]]

.PHONY: test
test: lint lane ## Lint, type-check and test with the newest Airflow; LANE=2.11.0 for another one
	$(RUN_TESTS)

.PHONY: test-unit
test-unit: $(READY) ## Test what needs neither kernels nor Airflow, and measure its coverage: half a minute
	$(VENV)/bin/python -m pytest -n 2 --cov --cov-config=tests/unit/coverage.toml --cov-report=term $(or $(PYTEST_ARGS),tests/unit)

.PHONY: test-matrix
test-matrix: $(READY) ## Test the provider on each Airflow and Python that is supported; LANE=3.0.6 for one
	$(VENV)/bin/python tests/matrix.py --processes $(TEST_PROCESSES) $(LANE)

.PHONY: lint
lint: $(READY) ## Check style and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

.PHONY: format
format: $(READY) ## Put the code into the common format
	$(VENV)/bin/ruff check --fix-only
	$(VENV)/bin/ruff format

.PHONY: demo
demo: $(READY) ## Run a real DAG that runs a notebook on a Studio on this machine; FLAVOUR=classic for the old one
	$(VENV)/bin/python example_dags/demo/run_demo.py $(if $(FLAVOUR),--flavour $(FLAVOUR))

.PHONY: live-deferred
live-deferred: lane ## 50 deferred notebooks on a real Airflow with two worker slots; RUNS=n, LANE=2.11.0
	DEFERRED_RUNS=$(or $(RUNS),50) $(TEST_PYTHON) -m pytest -o timeout=3000 tests/system/airflow/test_deferred.py

# Thirty days, five of which fail, eight at a time; DATABASE=sqlite for the other one. Postgres must be installed.
LIVE_BACKFILL = BACKFILL_DAYS=$(or $(DAYS),30) BACKFILL_BAD=5 BACKFILL_ACTIVE=8 BACKFILL_KILLS=30 BACKFILL_DATABASE=$(or $(DATABASE),postgres) \
  $(TEST_PYTHON) -m pytest -o faulthandler_timeout=0 tests/system/airflow/test_backfill.py tests/system/airflow/test_killed_backfill.py

.PHONY: live-backfill
live-backfill: lane ## 30 days of backfill on a real Airflow; DAYS=n, DATABASE=postgres or sqlite, LANE=2.11.0
	$(UV) pip install --quiet --python $(TEST_PYTHON) --group postgres
	$(LIVE_BACKFILL)

# Workers that are lost under Celery, as on MWAA; Redis and Postgres must be installed.
CELERY_AIRFLOW ?= 3.2.1
CELERY := .venv-celery-$(CELERY_AIRFLOW)
CELERY_READY := $(CELERY)/.ready
CELERY_CONSTRAINTS ?= ../shared/mwaa/constraints-$(CELERY_AIRFLOW).txt
HAS_SERVERS = for server in redis-server initdb pg_ctl; do command -v $$server >/dev/null \
  || { echo "There is no $$server: apt-get install redis-server postgresql" >&2; exit 1; }; done

$(CELERY_READY): $(UV) pyproject.toml Makefile $(wildcard $(CELERY_CONSTRAINTS))
	@python="$$($(call FIND_PYTHON,3.12))" && set -x && $(UV) venv --quiet --allow-existing --python "$$python" $(CELERY)
	$(UV) pip install --quiet --python $(CELERY)/bin/python --editable '.[local]' --group test --group celery \
	  'apache-airflow[celery]==$(CELERY_AIRFLOW)' --constraint $(CELERY_CONSTRAINTS)
	touch $@

.PHONY: live-celery
live-celery: $(CELERY_READY) ## Lose workers and servers in all ways, on CELERY_AIRFLOW=3.2.1; TIMES=n each, DAYS=n of backfill
	@$(HAS_SERVERS)
	CELERY_SCENARIOS=all CELERY_TIMES=$(or $(TIMES),1) CELERY_DAYS=$(or $(DAYS),30) $(CELERY)/bin/python -m pytest \
	  -o faulthandler_timeout=0 $(or $(PYTEST_ARGS),tests/system/celery)

.PHONY: test-celery-ci
test-celery-ci: $(CELERY_READY) ## The few of them that each check runs
	@$(HAS_SERVERS)
	$(CELERY)/bin/python -m pytest $(or $(PYTEST_ARGS),tests/system/celery/test_celery.py)

# The Jupyter servers of SageMaker Distribution's images: tests/system/images/locks names them and their packages.
IMAGES := .venv-images
ALL_IMAGES := $(basename $(notdir $(wildcard tests/system/images/locks/*.txt)))
IMAGE ?=
SPACE_KIND ?= private
FORCE ?=
IMAGE_PYTHON = $(if $(filter 1.%,$(1)),3.10,$(if $(filter 2.%,$(1)),3.11,3.12))
$(IMAGES)/%/.ready: tests/system/images/locks/%.txt | $(UV)
	@python="$$($(call FIND_PYTHON,$(call IMAGE_PYTHON,$*)))" && set -x && rm -rf $(IMAGES)/$* \
	  && $(UV) venv --quiet --python "$$python" $(IMAGES)/$*
	$(UV) pip sync --quiet --python $(IMAGES)/$*/bin/python $<
	echo $* > $(IMAGES)/$*/smstudio-image.txt
	touch $@

.PHONY: image
image: $(if $(filter $(IMAGE),$(ALL_IMAGES)),$(IMAGES)/$(IMAGE)/.ready) ## Build the Jupyter server of IMAGE=4.3.2 into .venv-images/
	@$(if $(filter $(IMAGE),$(ALL_IMAGES)),:,echo 'Which image? IMAGE=version, one of: $(sort $(ALL_IMAGES))' >&2; exit 1)

# These wait even more than the others.
IMAGE_PROCESSES ?= 4
LANES = $(VENV)/bin/python tests/system/images/lanes.py --processes $(IMAGE_PROCESSES)

.PHONY: test-image
test-image: $(READY) image ## Test against IMAGE=4.3.2 SPACE_KIND=private or shared
	$(LANES) $(IMAGE) --kind $(SPACE_KIND) $(PYTEST_ARGS)

.PHONY: test-images
test-images: $(READY) ## Test against all images, and write docs/images.md; continues where it stopped, FORCE=1 starts again
	$(LANES) $(if $(FORCE),,--resume)

.PHONY: test-images-ci
test-images-ci: $(READY) ## Test a selection against a few images
	$(LANES) --ci --beside 2

BENCH := .venv-bench
.PHONY: bench
bench: $(UV) ## Measure the client beside its peers; takes many minutes
	$(UV) venv --quiet --allow-existing $(BENCH)
	$(UV) pip install --quiet --python $(BENCH)/bin/python --editable '.[local]' --group bench
	$(BENCH)/bin/python benchmarks/cells.py $(BENCH_ARGS)

BENCH_AIRFLOW := .venv-bench-airflow
.PHONY: bench-backfill
bench-backfill: $(UV) ## Measure a backfill beside PapermillOperator, on a real Airflow with Postgres
	$(UV) venv --quiet --allow-existing $(BENCH_AIRFLOW)
	$(UV) pip install --quiet --python $(BENCH_AIRFLOW)/bin/python --editable '.[local]' --group bench-backfill '$(AIRFLOW)'
	$(BENCH_AIRFLOW)/bin/python benchmarks/backfill.py $(BENCH_ARGS)

.PHONY: build
build: $(UV) ## Build the wheel and the source distribution into dist/
	rm -rf dist
	$(UV) build --quiet
	@ls dist/*

# The built package in an empty environment, without extras: Airflow finds it and its modules import.
WHEEL_PYTHON = import airflow_provider_smstudio.get_provider_info as p, importlib as i; \
  info = p.get_provider_info(); \
  [i.import_module(m) for k in ("operators", "sensors", "triggers", "hooks") for x in info[k] for m in x["python-modules"]]

.PHONY: check-wheel
check-wheel: build ## Install the wheel with AIRFLOW=requirement and look whether Airflow finds it
	rm -rf build/wheel
	@python="$$($(call FIND_PYTHON,3.12))" && set -x && $(UV) venv --quiet --python "$$python" build/wheel
	$(UV) pip install --quiet --python build/wheel/bin/python dist/*.whl '$(AIRFLOW)' $(CONSTRAIN)
	$(UV) pip check --quiet --python build/wheel/bin/python
	AIRFLOW_HOME=$(CURDIR)/build/wheel/home build/wheel/bin/airflow providers list --output plain \
	  > build/wheel/providers.txt
	grep '^airflow-provider-smstudio ' build/wheel/providers.txt
	cd build/wheel && AIRFLOW_HOME=$(CURDIR)/build/wheel/home bin/python -c '$(WHEEL_PYTHON)'

.PHONY: check-resolution
check-resolution: build ## Resolve the wheel together with Airflow under CONSTRAINTS=file AIRFLOW=requirement
	printf '%s\n' ./$$(ls dist/*.whl) '$(AIRFLOW)' \
	  | $(UV) pip compile --quiet --no-header --python-version 3.12 --output-file /dev/null $(CONSTRAIN) -

.PHONY: clean
clean: ## Remove everything that is made
	rm -rf $(VENV) .venv-airflow .venv-celery-* $(IMAGES) build dist .pytest_cache .mypy_cache .ruff_cache .demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
