"""Commands to paste for each reader of an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def commands(folder: Path, about: dict[str, Any]) -> list[str]:
    """Sections of Markdown, with the export's folder as the working directory.

    Args:
        folder: of the export.
        about: what `linearard_export.json` holds.
    """
    window = about["window"]
    if about["form"] == "gguf":
        file = about["file"]
        return [
            _block("llama.cpp", "sh", f"llama-cli -m {file} -c {window} -st -p 'Once upon a time'"),
            _block("llama-cpp-python", "python", _LLAMA_CPP.format(file=file, window=window)),
            _block("Ollama", "sh", "ollama create restored -f Modelfile\nollama run restored"),
        ]
    if about["form"] == "adapter":
        return [
            _block("transformers with peft", "python", _ADAPTER.format(base=about["base_model"]))
        ]
    return [
        _block("transformers", "python", _MERGED),
        _block("vLLM", "sh", f"vllm serve .{_flag(folder, window)}"),
        _block("SGLang", "sh", "python -m sglang.launch_server --model-path ."),
        "llama.cpp and Ollama: `linearard export RUN OUT --format gguf` writes a file for them.",
    ]


_MERGED = """\
# pip install torch transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(".")
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))"""

_LLAMA_CPP = """\
# pip install llama-cpp-python
from llama_cpp import Llama

model = Llama("{file}", n_ctx={window}, verbose=False)
print(model("Once upon a time", max_tokens=50)["choices"][0]["text"])"""

_ADAPTER = """\
# pip install torch transformers peft
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

config = AutoConfig.from_pretrained(".")  # the stretched one: AutoPeftModelForCausalLM would not read it
base = AutoModelForCausalLM.from_pretrained("{base}", config=config, dtype="auto")
model = PeftModel.from_pretrained(base, ".")
tokenizer = AutoTokenizer.from_pretrained(".")
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))"""


def _block(title: str, language: str, code: str) -> str:
    return f"{title}:\n\n```{language}\n{code}\n```"


def _flag(folder: Path, window: int) -> str:
    config = json.loads((folder / "config.json").read_text())
    rope = config.get("text_config", config).get("rope_parameters") or {}
    linear = rope.get("full_attention", rope).get("rope_type") == "linear"
    # vLLM would allow the window times the factor
    return f" --max-model-len {window}" if linear else ""
