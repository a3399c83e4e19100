"""Write a restored model for others to load, and prove that it loads as the same model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from linearard.errors import RecipeError
from linearard.export.card import Story, write_card
from linearard.export.configuration import reader_notes, write_configuration, write_tokenizer
from linearard.export.folder import check_output, filled_aside
from linearard.export.gguf import GgufOptions, export_gguf
from linearard.export.merging import (
    MERGE_DTYPES,
    Probes,
    Reference,
    base_dtype,
    look,
    merge,
    packed_in_float32,
    report,
)
from linearard.export.probes import beyond, passages
from linearard.export.reader import observe
from linearard.export.reading import ReaderProcess, Trained, compare
from linearard.export.representation import exported_rope
from linearard.model import RestorableModel
from linearard.storage import write_json


def export_model(
    restorable: RestorableModel,
    folder: str | Path,
    form: str = "merged",
    *,
    overwrite: bool = False,
    merge_dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    readers: Sequence[ReaderProcess] = (),
    gguf: GgufOptions | None = None,
    window: int | None = None,
    story: Story | None = None,
) -> dict[str, Any]:
    """Export a restored model, read it in a new process, and compare before it is put in place.

    Args:
        restorable: the model with its trained weights, in its restored view; a merge uses it up.
        folder: where to write.
        form: `merged` (one complete model), `adapter` (LoRA weights beside a stretched configuration) or
            `gguf` (one file for llama.cpp and Ollama).
        overwrite: replace an earlier export.
        merge_dtype: precision of the merged weights that were trained: `auto` (that of the model, or of the
            GGUF, where it holds what training changed, else float32), `model` or `float32`.
        revision: of the base model, for readers of an adapter.
        trust_remote_code: let the reader run code that the base model's repository brings.
        readers: processes that must read it; default: one of this environment, ended afterwards.
        gguf: how a GGUF is written; it is read by llama.cpp where that is installed.
        window: tokens that the model says it reads (see `linearard.recipe.trained_window`); the target
            window where nothing is given.
        story: of the run, for the model card.

    Returns:
        What `linearard_export.json` says: `relative_error` of the reloaded logits, their
        `top1_agreement`, the price of the merge (`merge`), what some readers must know (`notes`).

    Raises:
        RecipeError, CheckpointError: see `check_output`, `merging.merge`, `reading.compare`. Then nothing is
            written, and an earlier export is as it was.
    """
    folder = Path(folder)
    kind = restorable.adapter.config.kind
    options = {"base": restorable.name, "packed": restorable.packed, "overwrite": overwrite}
    check_output(folder, form, kind, **options)
    if merge_dtype not in MERGE_DTYPES:
        raise RecipeError(
            expected=f"a precision of the merge among {', '.join(MERGE_DTYPES)}",
            got=repr(merge_dtype),
            fix="Set --merge-dtype.",
        )
    size = sum(p.numel() * p.element_size() for p in restorable.model.parameters())
    # A GGUF has a precision of its own, an adapter is small.
    with (
        filled_aside(folder, size if form == "merged" else 0) as (aside, about),
        ExitStack() as stack,
    ):
        about |= {"form": form, "base_model": restorable.name, "rope": restorable.rope.scaling}
        about["window"] = window = window or restorable.rope.target_window
        card = {"native_window": restorable.rope.native_window, "story": story}
        if form == "gguf":
            about |= export_gguf(
                restorable, aside, gguf or GgufOptions(), window=window, merge_dtype=merge_dtype
            )
            write_card(aside, about, **card, destination=folder)
            return about
        found, trained, probes = write_model(
            restorable, aside, form, merge_dtype=merge_dtype, revision=revision, window=window
        )
        about |= found
        request = {
            "folder": aside,
            "form": form,
            "device": _device_of_reader(restorable, aside),
            "base_dtype": str(base_dtype(restorable)).removeprefix("torch."),
            "trust_remote_code": trust_remote_code,
        }
        comparisons = []
        for reader in readers or [stack.enter_context(ReaderProcess())]:
            comparisons.append(
                compare(trained, reader.read(probes, **request), device=request["device"])
            )
        about |= comparisons[0] | {"readers": [c["transformers"] for c in comparisons]}
        write_card(aside, about, **card, destination=folder)
    return about


def write_model(
    restorable: RestorableModel,
    folder: Path,
    form: str,
    *,
    merge_dtype: str = "auto",
    revision: str | None = None,
    window: int | None = None,
) -> tuple[dict[str, Any], Trained, Probes]:
    """Write an export without reading it back.

    Args:
        restorable: the model; a merge uses it up.
        folder: exists.
        form, merge_dtype, revision, window: see `export_model`.

    Returns:
        What there is to report, what a reader has to find, and what to ask it.
    """
    texts = passages(restorable)
    probes = texts + beyond(restorable, texts)
    seen = look(restorable, texts)
    rope = restorable.rope
    window = window or rope.target_window
    about: dict[str, Any] = {}
    if form == "merged":
        model, prices = merge(restorable, merge_dtype, texts, seen)
        about |= report(prices)
        model.save_pretrained(folder)
        write_configuration(model.config, rope, folder, dtype=prices[-1].dtype, window=window)
    else:
        model = restorable.model
        restorable.adapter.save(folder)
        _name_base(folder, restorable.name, revision)
        write_configuration(model.config, rope, folder, window=window)
    if restorable.tokenizer is not None:
        write_tokenizer(restorable.tokenizer, window, folder)
    flat = exported_rope(rope, restorable.config.model_type, window)
    about["notes"] = reader_notes(restorable.config.model_type, flat, about.get("merge"))
    with packed_in_float32(model):
        observed = observe(model, probes)
    trained = Trained(
        tables=rope.tables("stretched"),
        observed=observed,
        change=_change(seen) if seen.trained else None,
        device=restorable.device,
        far=tuple("position_ids" in probe for probe in probes),
    )
    return about, trained, probes


def _change(seen: Reference) -> float:
    """The least change that training made to a text's logits, relative."""
    pairs = zip(seen.restored, seen.stretched, strict=True)
    return min(float((r - s).norm() / r.norm()) for r, s in pairs)


def _device_of_reader(restorable: RestorableModel, folder: Path) -> str:
    """The GPU if a second copy has room there beside what this process holds."""
    device = restorable.device
    if device.type != "cuda":
        return "cpu"
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    weights = sum(p.numel() * p.element_size() for p in restorable.model.parameters())
    return str(device) if free > 1.5 * weights + 4 * 2**30 else "cpu"


def _name_base(folder: Path, name: str, revision: str | None) -> None:
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text())
    content["base_model_name_or_path"] = name
    content["revision"] = revision
    write_json(path, content)
