# Everything runs from .venv, which the first target called installs; after that no network is needed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

# No library reports home, asks for an update or prompts. `VAR=... make ...` overrides any of these.
export DO_NOT_TRACK ?= true
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT ?= false
export MLFLOW_DISABLE_TELEMETRY ?= true
export DVC_NO_ANALYTICS ?= 1
export ITERATIVE_DO_NOT_TRACK ?= 1
export GX_ANALYTICS_ENABLED ?= false
# transformers, trl, datasets, accelerate and peft all ask huggingface_hub.
export HF_HUB_DISABLE_TELEMETRY ?= 1
export HF_HUB_DISABLE_UPDATE_CHECK ?= 1
export HF_HUB_OFFLINE ?= 1
export HF_DATASETS_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1
export PIP_NO_INPUT ?= 1

.DEFAULT_GOAL := help
.PHONY: help run test test-fast check bench ui
# Tests run on all cores, one thread each: threads that share a core wait for each other. A file stays on one core, since
# its tests share what was trained for them; files go in their order, so the long ones (smoke/) start early.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 8

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/.installed ## run the whole pipeline (the demo, unless params.yaml says otherwise)
	$(BIN)/region-r1 run

test: .venv/.installed ## all tests that need neither a GPU nor the internet
	$(PYTEST) --dist loadfile --no-loadscope-reorder

test-fast: .venv/.installed ## those that start no server and train nothing, in a minute and a half
	$(PYTEST) --dist worksteal -m "not gpu and not network and not smoke and not server and not slow"

check: .venv/.installed ## lint, formatting, types, and which module may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict pipeline flows demo benchmarks
	$(BIN)/lint-imports

bench: .venv/.installed ## measure what the reward and a training step cost, side by side
	$(BIN)/python -m benchmarks

ui: .venv/.installed ## start the Prefect and MLflow pages of this checkout
	$(BIN)/region-r1 ui

# The stamp holds what was installed, so a fresh checkout of unchanged files reinstalls nothing.
.venv/.installed: pyproject.toml constraints.txt
	@if cat $^ | cmp -s - $@; then touch $@; else \
		set -e; \
		"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(v != (3, 11) and f"Python 3.11 is needed; this is {v[0]}.{v[1]}. Set PYTHON=/path/to/python3.11.")'; \
		test -x $(BIN)/python || "$(PYTHON)" -m venv .venv; \
		$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,frozen-scorer]'; \
		$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps timm; \
		cat $^ > $@; \
	fi
