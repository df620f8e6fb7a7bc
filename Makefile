# Every target starts from a bare clone: it makes .venv, installs, and does its job. A second run skips what is there.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check install -qq

# Data and weights beside the checkout are used where they exist; none are required.
ifndef MIRRORCFE_DATA
ifneq ($(wildcard ../shared/data/.),)
export MIRRORCFE_DATA := $(abspath ../shared/data)
endif
endif
ifndef TORCH_HOME
ifneq ($(wildcard ../shared/torch_home/.),)
export TORCH_HOME := $(abspath ../shared/torch_home)
endif
endif

# Two torch processes that share the cores slow each other more than tenfold unless each keeps to one thread.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 8 ] && n=8; echo $$n)
NBTEST  := OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers $(WORKERS)

# The tests compute little at a time: of two threads one mostly waits, and waiting takes processor time as well.
# They must hold with any number; make pytest THREADS=2 runs them with two.
THREADS ?= 1
# As many files of tests at once as there are cores; WORKERS=0 runs them one after the other in one process.
PYTEST  := OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: help install demo test export sync nbtest pytest slow notebooks readme docs look wheel clean distclean
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "PYTHON=python3.12 chooses the interpreter of a new .venv; WORKERS=1 the notebooks and files of tests"
	@echo "that run at once; THREADS=2 gives pytest two threads."

install: $(STAMP)  ## make .venv and install the package with its dev extra

# settings.ini and setup.py hold the requirements: after a change of either, the package is installed again.
$(STAMP): settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "mirrorcfe needs Python 3.10 or newer: make PYTHON=python3.11 ..."; exit 1; }
	@test -x $(BIN)/python || { echo "Making $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@echo "Installing mirrorcfe and what it needs (torch included: minutes the first time, then skipped) ..."
	@$(PIP) --upgrade pip setuptools wheel
	@$(PIP) torch torchvision -e ".[dev]"
# Our PGD is tested against that of torchattacks. Its pins would require a torch that is years old, so they are ignored.
	@$(PIP) --no-deps "torchattacks==3.5.1" || echo "torchattacks could not be installed: the test that compares with it will be skipped"
	@touch $@

demo: $(STAMP)  ## train on the embedded digits and explain some, into a folder
	@$(BIN)/mirrorcfe demo

test: $(STAMP)  ## the whole check: export in sync, notebooks, pytest
	@echo "== 1/3 export and clean leave no diff"
	@$(BIN)/python tools/sync.py
	@echo "== 2/3 notebooks"
	@$(NBTEST) --do_print --timing
	@echo "== 3/3 pytest"
	@$(PYTEST)

sync: $(STAMP)  ## only the first part of the test: export in sync
	@$(BIN)/python tools/sync.py

nbtest: $(STAMP)  ## only the notebooks
	@$(NBTEST) --do_print --timing

pytest: $(STAMP)  ## only pytest
	@$(PYTEST)

slow: $(STAMP)  ## the notebooks with their slow cells, one after the other on all cores
	@$(BIN)/nbdev_test --n_workers 0 --flags slow --do_print --timing

notebooks: $(STAMP)  ## every notebook in a plain Jupyter kernel, top to bottom
	@OMP_NUM_THREADS=1 $(BIN)/python tools/run_notebooks.py

export: $(STAMP)  ## notebooks -> package, then clean them and write README.md
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean
	@$(BIN)/python tools/readme.py

readme: $(STAMP)  ## README.md from nbs/index.ipynb
	@$(BIN)/python tools/readme.py

docs: $(STAMP)  ## the documentation site into _docs (with Quarto where it is installed)
	@$(BIN)/python tools/docs.py

look: $(STAMP)  ## a sheet for each data set: the best, median and worst three results by the panel of judges
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/look.py

wheel:  ## build the wheel, install it into an environment of its own without the dev extra, run every command there
	@rm -rf build/wheel build/fresh
	@$(PYTHON) -m pip wheel -q . --no-deps -w build/wheel
	@$(PYTHON) -m venv build/fresh
	@build/fresh/bin/python -m pip install -qq build/wheel/*.whl
	@cd build && fresh/bin/python ../tools/try_wheel.py

clean:  ## remove what runs leave behind, but not .venv
	@rm -rf _docs _proc build dist out mirrorcfe-out* .pytest_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -print | xargs rm -rf

distclean: clean  ## remove that and .venv
	@rm -rf $(VENV) *.egg-info
