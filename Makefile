# `make demo` and `make test` do everything; both make .venv first if it is not there.

VENV ?= .venv
RUN_ROOT ?= runs/demo
PORT ?= 8000
BIN := $(VENV)/bin
GIT_REVISION := $(shell git describe --always --abbrev=40 --dirty --exclude='*' 2>/dev/null || echo unknown)
export VENV
# A token of this run's own. Without one in the environment `ray start` may want a token that `ray job submit` does not send. The doctor gets
# none: it goes to a Ray that runs, and Ray takes the variable before ~/.ray/auth_token.
export RAY_AUTH_MODE ?= token
ifeq ($(RAY_AUTH_TOKEN)$(filter doctor,$(MAKECMDGOALS)),)
export RAY_AUTH_TOKEN := $(shell head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
endif
# Bytecode is kept even where the environment says otherwise: without it every worker that imports vLLM or DeepSpeed takes twice as long.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo snips data serve test soak check doctor

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## make .venv from the locked CPU environment; seconds if it is already there
	@requirements/setup.sh

demo: setup  ## the whole chain on this machine, served, measured and reported in runs/demo
	$(BIN)/python -m supertiny.pipeline.demo --run-root "$(abspath $(RUN_ROOT))" --git-revision $(GIT_REVISION) --set traffic.port=$(PORT)

snips: data setup  ## the same chain on real utterances: make snips DATA=/folder/with/snips/and/clinc_oos
	$(BIN)/python -m supertiny.pipeline.demo --config jobs/configs/snips/pipeline.toml --run-root "$(CURDIR)/runs/snips" \
	  --git-revision $(GIT_REVISION) --set 'task.options.root="$(abspath $(DATA))"' --set traffic.port=$(PORT)

data:
	@test -d "$(DATA)" || { echo "error: give the data's folder: make snips DATA=/folder/with/snips/and/clinc_oos" >&2; exit 2; }

serve: setup  ## serve the last run's promoted model beside its teacher pipeline; SET="serve.mode=cascade" changes settings
	exec $(BIN)/python -m supertiny.pipeline.serve --run-root "$(abspath $(RUN_ROOT))" --set traffic.port=$(PORT) \
	  $(foreach setting,$(SET),--set '$(setting)')

test: check  ## check, then every test; TESTS=tests/serving for some
ifdef TESTS
	$(BIN)/pytest $(TESTS)
else
	$(BIN)/pytest --numprocesses=2 tests/unit tests/cluster
	$(BIN)/pytest --ignore=tests/unit --ignore=tests/cluster tests
endif

doctor: setup  ## every node of the running Ray (RAY_ADDRESS), else this machine: versions, GPUs, storage, clock, ports, tokens, disk
	$(BIN)/python jobs/doctor.py --set run_root="$(abspath $(RUN_ROOT))" --set git_revision=$(GIT_REVISION)

soak: setup  ## what takes long: lost nodes and heads, growing clusters, a day of losses, a million rows; two hours
	$(BIN)/pytest -m soak --capture=no tests

check: setup  ## format, lint, types, import layers, the rules of the tree
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest --quiet --durations=0 --durations-min=5 tests/unit/test_repository.py
