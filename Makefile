# Everything sets itself up: only python3 (3.11 or newer) and make are needed.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
LOWEST := .venv-lowest
EXTRAS := .venv-extras
FLOWER := .venv-flower
DOCS   := .venv-docs
S3     := .venv-s3
JUDGES := .venv-evaluators
OUT    ?=
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: $(shell sed -n 's/^\([a-z][a-z-]*\):.*\#\# .*/\1/p' $(firstword $(MAKEFILE_LIST)))

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(READY) ## Create .venv and install the locked dependencies and krossfuse itself (editable)

# $(call install,ENVIRONMENT,LOCK): compiled at once, because under PYTHONDONTWRITEBYTECODE every start would compile thousands of files again.
define install
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(1)/bin/uv pip install --quiet --compile-bytecode --python $(1)/bin/python -r $(2)
	$(1)/bin/uv pip install --quiet --python $(1)/bin/python --no-deps -e .
	$(1)/bin/python -m compileall -q krossfuse hydra_plugins
	@touch $@
endef

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"krossfuse needs Python 3.11 or newer; $(PYTHON) is {v.major}.{v.minor}. Say: make PYTHON=python3.12 ...")'
	$(call install,$(VENV),requirements.lock)

run: $(READY) ## The main job: the quick-start comparison on OpenMoji, offline; table, figures and W&B run in runs/
	$(BIN)/krossfuse -m experiment=quickstart $(ARGS)

test: $(READY) ## The test suite without what is marked slow
	$(BIN)/python -m pytest -n 2 -m "not slow and not network and not faults" $(ARGS)

test-slow: $(READY) ## What is marked slow
	$(BIN)/python -m pytest -n 2 -m "slow and not network and not faults" $(ARGS)

test-all: $(READY) ## The whole test suite, slow tests too
	$(BIN)/python -m pytest -n 2 -m "not network" $(ARGS)

test-faults: $(READY) ## Bad inputs and options, and jobs that are killed; prints the counts
	KROSSFUSE_KILLS=100 $(BIN)/python -m pytest -n 2 --dist load -m "not network" tests/faults tests/features/test_kills.py $(ARGS)

# The lowest versions that pyproject.toml admits. What these bring in themselves is the newest of the day AS_OF, so that
# no release elsewhere changes what is tested; a bound on a later release needs a later day.
AS_OF ?= 2026-11-24
$(LOWEST)/.ready: pyproject.toml Makefile
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip compile pyproject.toml --quiet --python $(LOWEST)/bin/python --group dev \
	  --upgrade --resolution lowest-direct --exclude-newer $(AS_OF) --output-file $(LOWEST)/requirements.txt
	$(LOWEST)/bin/uv pip sync --quiet --compile-bytecode --python $(LOWEST)/bin/python $(LOWEST)/requirements.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --no-deps -e .
	@touch $@

test-lowest: $(LOWEST)/.ready ## The same tests with the lowest versions that pyproject.toml admits, in .venv-lowest
	$(LOWEST)/bin/python -m pytest -n 2 -m "not slow and not network and not faults" $(ARGS)

$(EXTRAS)/.ready: pyproject.toml requirements-extras.lock
	$(call install,$(EXTRAS),requirements-extras.lock)

test-extras: $(EXTRAS)/.ready test-s3 ## The tests of what needs an optional package, with all of these, in .venv-extras
	$(EXTRAS)/bin/python -m pytest -n 2 -m "not slow and not network and not faults" tests/results/test_optional_trackers.py \
	  tests/probes/test_graph.py tests/probes/test_label_free.py tests/fusion/test_export.py tests/model/test_commands.py \
	  tests/app/test_search_sweep.py tests/data/test_huggingface.py $(ARGS)
	$(EXTRAS)/bin/python -m pytest -n 0 tests/docs/test_tutorials.py -k deploy $(ARGS)

# What speaks S3 wants an older python-dateutil than everything else.
$(S3)/.ready: pyproject.toml requirements-s3.lock
	$(call install,$(S3),requirements-s3.lock)

test-s3: $(S3)/.ready ## Shards and stores at s3://, against a server on the loopback, in .venv-s3
	$(S3)/bin/python -m pytest -n 0 tests/features/test_s3.py $(ARGS)

# Flower wants older packages than everything else, so that it has a lock and an environment of its own.
$(FLOWER)/.ready: pyproject.toml requirements-flower.lock
	$(call install,$(FLOWER),requirements-flower.lock)

test-flower: $(FLOWER)/.ready ## Federations over Flower, in .venv-flower: in one process, and a SuperLink with SuperNodes
	$(FLOWER)/bin/python -m pytest $(ARGS) tests/flower
	$(FLOWER)/bin/python -m pytest -q -k flower $(ARGS) tests/faults

$(JUDGES)/.ready: pyproject.toml requirements-evaluators.lock
	$(call install,$(JUDGES),requirements-evaluators.lock)

test-evaluators: $(JUDGES)/.ready ## Others' suites (mteb, CLIP_benchmark) evaluate a fused encoder, in .venv-evaluators
	$(JUDGES)/bin/python -m pytest -n 0 tests/evaluators $(ARGS)

# The site reads the package's files and imports none of them: its lock holds what builds it, and nothing else.
$(DOCS)/.ready: pyproject.toml requirements-docs.lock
	$(call install,$(DOCS),requirements-docs.lock)

docs: $(DOCS)/.ready ## Build the documentation site in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet

test-docs: docs $(READY) ## The site in a browser, and every tutorial followed block by block
	$(BIN)/python -m pytest -n 2 tests/docs $(ARGS)

lint: $(READY) ## ruff (lint and format), mypy --strict, and the rooms: which module may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(READY) ## Format and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pretrain: $(READY) ## Train the bundled cross-modal encoder again from scratch (2 cores, 20 minutes or less)
	$(BIN)/python -m experiments.pretrain $(ARGS)

bench-extraction: $(READY) ## Extraction against the best bare loop; OUT=FILE for the JSON
	$(BIN)/python -m experiments.benchmarks.extraction $(if $(OUT),--out $(OUT)) $(ARGS)

bench-fusion: $(READY) ## Every sketch against the published formula; OUT=FILE for the JSON
	$(BIN)/python -m experiments.benchmarks.fusion $(if $(OUT),--out $(OUT)) $(ARGS)

bench-cost: $(READY) ## Time a batch and peak memory beside the paper's table 10; ARGS="--pair NAME"; OUT=FILE for the JSON
	$(BIN)/python -m experiments.benchmarks.cost $(if $(OUT),--out $(OUT)) $(ARGS)

bench-probes: $(READY) ## The linear probe against scikit-learn; OUT=FILE for the JSON
	$(BIN)/python -m experiments.benchmarks.probes $(if $(OUT),--out $(OUT)) $(ARGS)

bench-selection: $(READY) ## C=cv against brute force for each candidate; OUT=FILE for the JSON
	$(BIN)/python -m experiments.benchmarks.selection $(if $(OUT),--out $(OUT)) $(ARGS)

bench-cepam: $(READY) ## CEPAM's quantiser, messages and simulation against the published loops; OUT=FILE for the JSON
	$(BIN)/python -m experiments.benchmarks.cepam $(if $(OUT),--out $(OUT)) $(ARGS)

bench-flower: $(FLOWER)/.ready ## Flower's messages on the wire under CEPAM and as float32, and what a round costs; OUT=FILE for the JSON
	$(FLOWER)/bin/python -m experiments.benchmarks.flower $(if $(OUT),--out $(OUT)) $(ARGS)

bench-search: $(READY) ## Search over the emoji: time of a query, recall against both parents; OUT=FILE for the JSON
	$(BIN)/python -m experiments.benchmarks.search $(if $(OUT),--out $(OUT)) $(ARGS)

bench-quantise: $(READY) ## int8 and bits against float32: retrieval, 1-NN and bytes on the emoji; OUT=FILE for the JSON
	$(BIN)/python -m experiments.benchmarks.quantise $(if $(OUT),--out $(OUT)) $(ARGS)

bench-sweep: $(READY) ## What a sweep costs beside fusing and probing; OUT=FILE for the JSON
	$(BIN)/python -m experiments.benchmarks.sweep $(if $(OUT),--out $(OUT)) $(ARGS)

bench-scale: $(READY) ## Fusion and probes from 100,000 rows on, streamed; ARGS="--largest 10000000"; OUT=FILE for the JSON and a plot
	$(BIN)/python -m experiments.benchmarks.scale $(if $(OUT),--out $(OUT)) $(ARGS)

bench-gpu: $(READY) ## On one CUDA device: extraction against the bare encoder, a fused batch, probes against the CPU; OUT=FILE for the JSON
	$(BIN)/python -m experiments.benchmarks.gpu $(if $(OUT),--out $(OUT)) $(ARGS)

# Ray's launcher pins cloudpickle, and so an older joblib: an environment of its own, from its own lock.
LAUNCHERS := .venv-launchers
$(LAUNCHERS)/.ready: pyproject.toml requirements.lock requirements-ray.lock
	$(call install,$(LAUNCHERS),requirements-ray.lock)

test-launchers: $(LAUNCHERS)/.ready ## Sweeps under joblib, submitit and Ray, shards by Ray Data, in .venv-launchers
	$(LAUNCHERS)/bin/python -m pytest -n 0 tests/app/test_launchers.py tests/app/test_encode_job.py $(ARGS)

wheel: $(READY) ## Build dist/krossfuse-*.whl, configuration included
	$(BIN)/python -m build --wheel --no-isolation

PINNED := --quiet --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-header --no-annotate
PINS   := $(PINNED) --group dev

lock: ## Resolve the lock files anew (pins only)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile pyproject.toml $(PINS) --upgrade --output-file requirements.lock
	$(BIN)/uv pip compile pyproject.toml $(PINS) --upgrade --constraint requirements.lock --output-file requirements-extras.lock \
	  --extra faiss --extra mlflow --extra tensorboard --extra onnx --extra parquet --extra datasets --extra optuna --extra qdrant
	cp requirements.lock requirements-s3.lock
	$(BIN)/uv pip compile pyproject.toml $(PINS) --upgrade-package python-dateutil --output-file requirements-s3.lock --group s3-server --extra s3
	$(BIN)/uv pip compile --group docs $(PINNED) --upgrade --output-file requirements-docs.lock
	cp requirements.lock requirements-flower.lock  # the same versions wherever Flower admits them
	$(BIN)/uv pip compile pyproject.toml $(PINS) --output-file requirements-flower.lock --extra flower
	cp requirements.lock requirements-evaluators.lock  # an older NumPy, for CLIP_benchmark's sake
	$(BIN)/uv pip compile pyproject.toml $(PINS) --upgrade-package numpy --output-file requirements-evaluators.lock --extra mteb --extra clip-benchmark
	cp requirements.lock requirements-ray.lock
	$(BIN)/uv pip compile pyproject.toml $(PINS) --upgrade-package joblib --upgrade-package cloudpickle --output-file requirements-ray.lock --extra ray

clean: ## Remove the virtual environment, run folders, caches and build output (the feature store stays)
	rm -rf $(VENV) $(LOWEST) $(EXTRAS) $(FLOWER) $(LAUNCHERS) $(DOCS) $(JUDGES) $(S3) runs bench build dist site wandb .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
