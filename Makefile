# Everything happens in $(VENV); the base Python is left alone.
PYTHON ?= python3
VENV ?= .venv
# What to download where no torch is at hand, and an index with the build you want; see README.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
OUT ?= out
# Options of the benchmark, such as --quick.
BENCH ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
# The folders too, since a removed file changes nothing else.
SOURCES := $(shell find ppl_vi models guides -name __pycache__ -prune -o -print) pyproject.toml
WHEELS := build/wheel

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow bench bench-cavi bench-vae docs lint wheel clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.installed ## install, fit a mixture and an autoencoder, write tables and pictures to out/
	$(PY) -m ppl_vi demo --out $(OUT)
	$(PY) -m ppl_vi demo vae --out $(OUT)/vae

test: $(VENV)/.test ## build the wheel, install it and test it away from the source
	$(PY) tools/run_tests.py

test-slow: $(VENV)/.test ## the tests that take minutes
	$(PY) tools/run_tests.py -m slow

bench: $(VENV)/.bench ## ppl-vi beside its peers: tables and pictures in out/bench
	$(PY) benchmarks/compare_peers.py --out $(OUT)/bench $(BENCH)

bench-cavi: $(VENV)/.bench ## coordinate ascent beside scikit-learn, and its memory
	$(PY) benchmarks/ascent_mixtures.py
	$(PY) benchmarks/ascent_topics.py
	$(PY) benchmarks/ascent_memory.py

bench-vae: $(VENV)/.bench ## the autoencoder beside PyTorch and NumPyro; BENCH="--data mnist.npz" for MNIST
	$(PY) benchmarks/vae_peers.py $(BENCH)

docs: $(VENV)/.docs ## the documentation in build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

lint: $(VENV)/.lint ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	cd build && $(abspath $(PY)) -m mypy --config-file ../pyproject.toml -p ppl_vi

wheel: $(WHEELS)/.built ## build the wheel in build/wheel

clean: ## remove everything that make made
	rm -rf $(VENV) build dist out *.egg-info

# A torch that is there is kept: in the base Python (then the environment sees its packages), or in
# the environment. Only where there is none is one downloaded.
$(VENV)/.torch:
	$(PYTHON) tools/make_environment.py $(VENV) "$(TORCH)" "$(TORCH_INDEX)"
	touch $@

$(WHEELS)/.built: $(SOURCES) README.md LICENSE | $(VENV)/.torch
	rm -rf $(WHEELS) build/lib build/bdist*
	$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(WHEELS) .
	touch $@

$(VENV)/.installed: $(WHEELS)/.built
	$(PIP) $(WHEELS)/*.whl
	$(PIP) --force-reinstall --no-deps $(WHEELS)/*.whl
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(PIP) "$$(ls $(WHEELS)/*.whl)[test]"
	touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(PIP) "$$(ls $(WHEELS)/*.whl)[bench]"
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(PIP) "$$(ls $(WHEELS)/*.whl)[docs]"
	touch $@

$(VENV)/.lint: $(VENV)/.installed
	$(PIP) "$$(ls $(WHEELS)/*.whl)[lint]"
	touch $@
