# make demo    environment, the demo study on embedded data, the report
# make test    environment, tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGIN := plugins/snakemake-executor-plugin-submitit

.PHONY: help env demo test test-workflow test-all test-intel test-accelerator docs site mutants lint format lock clean
help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

env: $(VENV)/.ready  ## create the environment in .venv, once

# Compiled once: where PYTHONDONTWRITEBYTECODE is set, as in many containers, every start would compile all of PyTorch again.
$(VENV)/.ready: requirements.lock pyproject.toml $(PLUGIN)/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(f"Atlas needs Python 3.11 or newer, not {sys.version.split()[0]}; say which: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV) || { echo "python3 cannot make environments here; on Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable . --editable $(PLUGIN)
	@touch $@

demo: env  ## run the demo study on this machine, and say how its numbers compare with the committed ones
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --quiet rules host --config here=yes
	@$(BIN)/atlas compare --brief HEAD results/demo || test $$? -le 2
	@echo "report: results/demo/report.html"

test: env  ## run the tests that take seconds each
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" -q

test-workflow: env  ## try the real Snakemake, the real DVC and the executor on studies of seconds
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/workflow tests/conformance/test_reference.py tests/harness/test_kernels.py tests/harness/test_launch.py $(PLUGIN) -m "slow and not slurm" -q

ROWS ?= digits/deit/ uvc-b35 diverse-vit/ as-vit-seed/ handover/vfds synth/static/ flying-bird/ robust-bird digits-domains/split-mix heterofl analytic/sinnerf-geom motorcycle/dsnerf/ amalgamated-mean rp-small/ digits/symbolic
CPU ?= Haswell-noTSX
test-intel: env  ## ask an emulated Intel for the bits of the reference, some rows of every paper; needs qemu-user, 10 or newer
	@ATLAS_KERNELS=portable CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 PYTHONPATH="src:.:$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
		qemu-x86_64 -cpu $(CPU) "$$(readlink -f $(BIN)/python)" -m tests.conformance.short_runs --emulated $(CPU) $(ROWS)

test-accelerator: env  ## nearly every row of the demo on a GPU that is pretended: tensors of two devices do not mix
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/accelerator -q

docs: env  ## run what the documentation shows, in a fresh clone
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 tests/docs -q

site: env  ## build the documentation as a site in site/; needs mkdocs-material and mkdocstrings[python] in .venv
	$(BIN)/python -m mkdocs build

test-all: env  ## run every test
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -q

mutants: env  ## how many small faults the tests notice, by mutmut on a sample; an hour or two, stop and start it as you like
	$(BIN)/uv pip install --quiet --python $(BIN)/python mutmut==3.8.1
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants

lint: env  ## check style, types and the workflow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

format: env  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

lock:  ## write requirements.lock anew from both pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
		--no-annotate --no-header --no-emit-package snakemake-executor-plugin-submitit --extra all --extra dev pyproject.toml --output-file requirements.lock

clean:  ## forget everything that was computed here, but not the data, nor what kernels.csv keeps of other processors
	rm -rf checkpoints logs results/demo-trial .snakemake .atlas
	mkdir -p results/demo
	find results/demo -mindepth 1 ! -type d ! -path results/demo/kernels.csv -delete
	find results/demo -mindepth 1 -type d -empty -delete
