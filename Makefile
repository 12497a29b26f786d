# `make`: the environment, then the cards of config.yaml. `make test`: all checks. `make help`: the rest.

# The newest Python that is here and fits, with venv; PYTHON=/path/to/python3.12 names another.
FITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 15))
PYTHON ?= $(or $(shell for python in python3.14 python3.13 python3.12 python3.11 python3; do \
	$$python -I -c '$(FITS)' 2>/dev/null && echo $$python && break; done),python3)
VENV := .venv
BIN := $(VENV)/bin
CORES ?= all
# `make env PORTABLE=1`: the engine for all machines of a kind; PORTABLE=0: for this one, as at first. An
# environment stays what it is until told otherwise.
MADE := $(shell cat $(VENV)/ready 2>/dev/null)
KIND := $(if $(PORTABLE),$(if $(filter 0,$(PORTABLE)),native,portable),$(or $(MADE),native))
JOBS ?= auto
REPEAT ?= 5
ROWS ?=
MODEL ?=
TESTS := tests
UPGRADE := --upgrade

# What environment modules set for another Python would change what is imported here.
unexport PYTHONPATH PYTHONHOME
# Wheels only, and only those that the locks name by their hashes. Where they come from is the user's own pip
# configuration. Two are sdists, built with the pinned setuptools of build.lock: connection-pool, pure Python, and
# immutables, which has no wheel for 3.14. Its extension would need Python's headers; no compiler runs (CC=true),
# and its module in Python serves: Snakemake makes empty maps of it and nothing else.
PIP := CC=true LDSHARED=true $(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet \
	--require-hashes --no-deps --no-build-isolation --only-binary :all: --no-binary connection-pool,immutables

.PHONY: cards env evals cluster converter check test lint unit unit-newest test-cluster bench lock clean help

cards: env
	@$(BIN)/snakemake --cores $(CORES)
	@for card in results/*/card/README.md; do echo "card: $$card"; done

env: $(VENV)/ready

check:
	@$(PYTHON) -I -c '$(FITS)' 2>/dev/null || { \
		echo "error: $(PYTHON): no Python 3.11 to 3.14 with venv; install one (Debian: apt-get install python3" \
			"python3-venv) or name one: make PYTHON=/path/to/python3.13" >&2; exit 1; }
	@for compiler in $$CXX c++ g++ clang++; do command -v "$$compiler" >/dev/null && exit 0; done; \
		echo "error: no C++ compiler (c++, g++ or clang++), llama.cpp is built here; install one" \
			"(Debian: apt-get install g++) or name one: CXX=/path/to/compiler make" >&2; exit 1

ifneq ($(KIND),$(or $(MADE),$(KIND)))
.PHONY: $(VENV)/ready
endif
$(VENV)/ready: envs/build.lock envs/requirements.lock envs/engine.lock envs/models.lock envs/engine.py pyproject.toml
	@$(MAKE) --no-print-directory check
	@echo "building the environment in $(VENV), with $(PYTHON)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -r envs/build.lock
	@$(PIP) -r envs/requirements.lock -r envs/models.lock
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet --no-deps --no-index \
		--no-build-isolation --editable .
	@$(BIN)/python -m compileall -q workflow/quantmill
	@$(BIN)/python envs/engine.py $(KIND)
	@$(BIN)/python -m quantmill.engine.native
	@echo $(KIND) >$@

# Only for checkpoints that are to be converted: torch is large, and nothing else needs it.
converter: .converter/ready

.converter/ready: $(VENV)/ready envs/converter.lock envs/engine.lock envs/converter.py
	@echo "building the converter's environment in .converter, 1.2 GB"
	@rm -rf .converter
	@$(PYTHON) -m venv .converter
	@.converter/bin/python -m pip --disable-pip-version-check install --quiet --quiet --require-hashes --no-deps \
		--only-binary :all: -r envs/converter.lock || { \
		echo "error: the converter's environment could not be built; if it is for torch: name a place that has its" \
			"builds for the CPU, such as PIP_EXTRA_INDEX_URL=... make converter" >&2; exit 1; }
	@$(BIN)/python envs/converter.py .converter/llama.cpp
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready envs/dev.lock
	@$(PIP) -r envs/dev.lock
	@touch $@

# lm-eval, which bench.tasks needs and nothing else. Three that it needs have no wheels; they are pure Python.
evals: $(VENV)/ready
	@$(PIP) --no-binary rouge-score,sqlitedict,word2number -r envs/evals.lock

# Snakemake's plugins for Slurm and Kubernetes, which the profiles of these names need.
cluster: $(VENV)/ready
	@$(PIP) -r envs/cluster.lock

test: lint unit

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks envs
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

unit: $(VENV)/ready-dev
	$(BIN)/pytest -n $(JOBS) --dist loadfile $(TESTS)

# What passed in .venv's Python passes in the newest that is here too, in an environment of its own.
VERSION := import sys; print("%d.%d" % sys.version_info[:2])
unit-newest: .venv/ready
	@old=$$(.venv/bin/python -c '$(VERSION)'); new=$$($(PYTHON) -c '$(VERSION)'); \
	if [ "$$new" = "$$old" ]; then echo "no newer Python than $$old is here; the unit tests ran in that one alone"; \
	else $(MAKE) --no-print-directory unit VENV=.venv-newest TESTS=tests/unit; fi

# On a Slurm of two nodes on this machine, where Debian's packages are: slurmctld slurmd slurm-client munge; with
# accounting too, where slurmdbd and mariadb-server are.
test-cluster: $(VENV)/ready-dev cluster
	$(BIN)/pytest -n0 tests/cluster

bench: $(VENV)/ready
	@$(BIN)/python benchmarks/run.py --repeat $(REPEAT) $(if $(ROWS),--rows $(ROWS)) $(if $(MODEL),--model $(MODEL))

# Resolves envs/*.in anew, to the newest versions that fit every Python and platform, one for all; UPGRADE= keeps
# what is locked and fits. uv lives in a throw-away environment. CPU_WHEELS is an index that has torch's builds for
# the CPU; without it the converter's lock stays as it is.
UV = ../.cache/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-header
LOCK = cd envs && $(UV) $(UPGRADE) --fork-strategy fewest --generate-hashes --no-emit-index-url --allow-unsafe
CPU = --index $(CPU_WHEELS) --index-strategy unsafe-best-match
LOCKS := requirements build dev engine models evals cluster
lock:
	@$(MAKE) --no-print-directory check
	@rm -rf .cache/lock
	@$(PYTHON) -m venv .cache/lock
	@.cache/lock/bin/python -m pip --disable-pip-version-check install --quiet --quiet uv packaging
	$(LOCK) -o requirements.lock requirements.in >/dev/null
	$(LOCK) -c requirements.lock -o build.lock build.in >/dev/null
	$(LOCK) -c requirements.lock -c build.lock -o dev.lock dev.in >/dev/null
	$(LOCK) --no-deps -o engine.lock engine.in >/dev/null
	$(if $(CPU_WHEELS),$(LOCK) $(CPU) -o converter.lock converter.in >/dev/null,@echo \
		"converter.lock stays as it is: CPU_WHEELS names no index with torch's builds for the CPU")
	$(LOCK) --no-deps -o models.lock models.in >/dev/null
	$(LOCK) -c requirements.lock -c build.lock -c dev.lock -o evals.lock evals.in >/dev/null
	$(LOCK) -c requirements.lock -c build.lock -c dev.lock -o cluster.lock cluster.in >/dev/null
	@for lock in $(LOCKS) $(if $(CPU_WHEELS),converter); do (cd envs && $(UV) $(if $(CPU_WHEELS),$(CPU)) --no-deps \
		--format pylock.toml -o ../.cache/lock/pylock.$$lock.toml $$lock.lock >/dev/null) || exit 1; done
	@.cache/lock/bin/python envs/wheels.py .cache/lock/pylock.*.toml

clean:
	rm -rf results

define HELP
With make:
  make              build the environment, then make every card of config.yaml (CORES=all)
  make env          the environment alone, in .venv (PYTHON=python3.12 for another than the newest,
                    PORTABLE=1 for an engine that runs on all x86-64-v3 or armv8.2 machines)
  make evals        add lm-eval, for bench.tasks
  make cluster      add Snakemake's plugins for Slurm and Kubernetes, for profiles/slurm and profiles/kubernetes
  make converter    add what converts Hugging Face checkpoints, in .converter (torch for the CPU, 1.2 GB)
  make test         lint, types, tests (JOBS=auto)
  make unit         the tests alone
  make unit-newest  tests/unit again, in the newest Python that is here
  make test-cluster  a run through profiles/slurm and its faults, on a Slurm of two nodes that it starts (as root)
  make lint         ruff, mypy, snakefmt, snakemake --lint
  make bench        measure against llama.cpp's own tools (ROWS=imatrix,quantize REPEAT=5 MODEL=x-F16.gguf)
  make lock         resolve envs/*.in to envs/*.lock anew (UPGRADE= keeps the versions that are locked)
  make clean        remove results/, the store among them

With snakemake, once the environment is active (. .venv/bin/activate):
  snakemake --cores all TARGET...    make what is missing or stale (-n shows what that is)
    all             everything that config.yaml asks for; this is the default
    cards           the model cards
    quants          the quantized files
    retag           the files with the metadata that the config has now; nothing is quantized again
    plans           which type each tensor gets, and each file's exact size (seconds, from the header)
    checkpoints     the exported NVFP4 checkpoints
    imatrices       the importance matrices
    sensitivities   the sensitivity of each tensor
    why             why results are stale, and nothing run; of one file with its name after it
    verify          make the files again from lock.json and compare (--config verify=sample: some tensors)
    publish         list what would be uploaded; with --config confirm=yes upload it

With python:
  python -m quantmill                list the stages, and what each reads and writes
endef
export HELP
help:
	@echo "$$HELP"
