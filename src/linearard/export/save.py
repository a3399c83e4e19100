"""Write a restored model for others to load, and prove that it loads as the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linearard.errors import CheckpointError, RecipeError
from linearard.export.configuration import write_configuration, write_tokenizer
from linearard.export.gguf import GgufOptions, export_gguf
from linearard.model import (
    UNFINISHED,
    RestorableModel,
    check_can_be_made,
    check_room,
    names_gguf,
    room_for_checkpoint,
    written,
)

FORMATS = ("merged", "adapter", "gguf")
EXPORT_FILE = "linearard_export.json"
#: Relative error of logits that rounding may explain. In bfloat16 the arithmetic alone moves the logits of
#: small random models by up to 3e-2, and merging rounds once more; a wrong RoPE gives 3e-1 and more (tests).
_TOLERANCE = {torch.bfloat16: 1e-1, torch.float16: 1e-2, torch.float32: 1e-4}
_PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time there was",
    "Water boils at",
    "In the beginning",
    "To make bread you need",
    "1, 2, 3, 4,",
    "The pass key is",
)


def check_output(
    folder: Path,
    form: str,
    adapter_kind: str,
    *,
    base: str = "",
    packed: bool = False,
    overwrite: bool,
) -> None:
    """Refuse what cannot be exported, before anything is loaded.

    Args:
        folder: where the export shall go.
        form: one of `FORMATS`.
        adapter_kind: of the trained model.
        base: how the user named the base model.
        packed: whether it was loaded in 4 bits.
        overwrite: whether an earlier export may be replaced.

    Raises:
        RecipeError: unknown form, or the adapter form where nobody could read it: of a directly trained
            model, or over a base in a GGUF or in 4 bits.
        CheckpointError: the folder is not empty and `overwrite` is off, or is no earlier export.
    """
    if form not in FORMATS:
        raise RecipeError(
            expected=f"a format among {', '.join(FORMATS)}", got=repr(form), fix="Set --format."
        )
    if form == "adapter" and adapter_kind != "lora":
        raise RecipeError(
            expected="--format merged for a model whose q, k, v were trained directly",
            got="--format adapter",
            fix="Export it merged.",
        )
    if form == "adapter" and names_gguf(base):
        raise RecipeError(
            expected="--format merged for a base model in a GGUF file, which peft cannot load",
            got="--format adapter",
            fix="Export it merged.",
        )
    if form == "adapter" and packed:
        raise RecipeError(
            expected="--format merged for a base model in 4 bits",
            got="--format adapter, which others would read over the dense weights that it was not trained on",
            fix="Export it merged.",
        )
    content = list(folder.iterdir()) if folder.is_dir() else []
    check_can_be_made(folder)
    begun = {UNFINISHED} if (folder / UNFINISHED).is_dir() else set()
    content = [path.name for path in content if path.name not in begun]
    if content and not overwrite:
        raise CheckpointError(
            expected="an empty or new output folder",
            got=f"{folder}, which exists",
            fix="Give --overwrite to write into it, or another folder.",
        )
    if content and not (folder / EXPORT_FILE).is_file() and not written.is_withdrawn(folder):
        raise CheckpointError(
            expected=f"a folder of an earlier export, with {EXPORT_FILE}",
            got=f"{folder} without it",
            fix="Choose another folder: files that linearard did not write are left alone.",
        )


def export_model(
    restorable: RestorableModel,
    folder: str | Path,
    form: str = "merged",
    *,
    overwrite: bool = False,
    gguf: GgufOptions | None = None,
) -> dict[str, Any]:
    """Export a restored model and compare the reloaded one with it.

    Args:
        restorable: the model with its trained weights; a merge uses it up.
        folder: where to write.
        form: `merged` (one complete model), `adapter` (LoRA weights beside a stretched configuration) or
            `gguf` (one file for llama.cpp and Ollama).
        overwrite: replace an earlier export, of which the listed files are removed, and no others.
        gguf: how a GGUF is written.

    Returns:
        `relative_error` of the reloaded logits and their `top1_agreement` on eight prompts; also written
        into `linearard_export.json`, which lists the files of the export, and is there when all of them are.

    Raises:
        RecipeError, CheckpointError: see `check_output`.
        CheckpointError: the reloaded model gives other logits, or the disk is full; nothing was exported.
    """
    folder = Path(folder)
    kind = restorable.adapter.config.kind
    options = {"base": restorable.name, "packed": restorable.packed, "overwrite": overwrite}
    check_output(folder, form, kind, **options)
    about = {"form": form, "base_model": restorable.name, "rope": restorable.rope.scaling}
    staged = folder / UNFINISHED
    # Written beside its place and proven there: a killed export is none, and an earlier one stays.
    with room_for_checkpoint(folder, "Free some, or choose another folder."):
        written.clear(staged)
        staged.mkdir(parents=True)
        try:
            size = sum(p.numel() * p.element_size() for p in restorable.model.parameters())
            if form == "merged":
                check_room(
                    folder, size, "the exported model", "Free some, or choose another folder."
                )
            if form == "gguf":
                comparison = export_gguf(restorable, staged, gguf or GgufOptions())
            else:
                comparison = _export(restorable, staged, form)
            written.complete(staged, EXPORT_FILE, about | comparison)
            written.install(staged, folder, EXPORT_FILE)
        finally:
            written.clear(staged)
    return comparison


def _export(restorable: RestorableModel, folder: Path, form: str) -> dict[str, Any]:
    inputs = _prompts(restorable)
    expected = _logits(restorable.model, inputs)
    dtype = next(restorable.model.get_output_embeddings().parameters()).dtype
    if form == "merged":
        merged = restorable.adapter.merge()
        merged.save_pretrained(folder)
        write_configuration(merged.config, restorable.rope, folder)
    else:
        restorable.adapter.save(folder)
        _name_base(folder, restorable.name)
        write_configuration(restorable.model.config, restorable.rope, folder)
    if restorable.tokenizer is not None:
        write_tokenizer(restorable.tokenizer, restorable.rope.target_window, folder)
    got = _logits(_reload(restorable, folder, form, dtype), inputs)
    return _compare(expected, got, dtype)


def _prompts(restorable: RestorableModel) -> list[Tensor]:
    if restorable.tokenizer is None:
        generator = torch.Generator().manual_seed(0)
        size = restorable.config.vocab_size
        return [torch.randint(size, (1, 24), generator=generator) for _ in _PROMPTS]
    return [restorable.tokenizer(text, return_tensors="pt").input_ids for text in _PROMPTS]


@torch.no_grad()
def _logits(model: Any, inputs: list[Tensor]) -> list[Tensor]:
    model.eval()
    device = next(model.parameters()).device
    return [
        model(input_ids=ids.to(device), use_cache=False).logits[0].float().cpu() for ids in inputs
    ]


def _name_base(folder: Path, name: str) -> None:
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text())
    content["base_model_name_or_path"] = name
    path.write_text(json.dumps(content, indent=2) + "\n")


def _reload(restorable: RestorableModel, folder: Path, form: str, dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    if form == "merged":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(restorable.device)
    from peft import PeftModel

    # The base in memory, with its adapter off, stands for the base on disk: what is tested is that
    # the stretched configuration and the adapter file bring the student back.
    config = AutoConfig.from_pretrained(folder)
    with restorable.view("original"):
        base = AutoModelForCausalLM.from_config(config, dtype=dtype)
        weights = {
            name.replace("base_layer.", ""): tensor
            for name, tensor in restorable.model.get_base_model().state_dict().items()
            if "lora_" not in name
        }
        base.load_state_dict(weights)
    return PeftModel.from_pretrained(base, folder).to(restorable.device)


def _compare(expected: list[Tensor], got: list[Tensor], dtype: torch.dtype) -> dict[str, Any]:
    error = max(float((g - e).norm() / e.norm()) for e, g in zip(expected, got, strict=True))
    same = torch.cat([e.argmax(-1) == g.argmax(-1) for e, g in zip(expected, got, strict=True)])
    if not error <= _TOLERANCE[dtype]:
        raise CheckpointError(
            expected=f"the reloaded model to give the same logits (relative error up to {_TOLERANCE[dtype]})",
            got=f"{error:.3g}",
            fix="Nothing was exported; report this with your recipe.",
        )
    return {"relative_error": error, "top1_agreement": float(same.float().mean())}
