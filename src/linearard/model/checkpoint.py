"""A restored model on disk: adapter, RoPE, tokenizer, and what they belong to.

An adapter without the RoPE it was trained for reloads as a broken model without a word, so a checkpoint
carries both, and a load compares the model, the RoPE tables and the adapter before it touches a weight.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from linearard.errors import CheckpointError
from linearard.model import written
from linearard.model.adapters import AdapterConfig
from linearard.model.disk_space import room_for_checkpoint
from linearard.model.load import ModelConfig
from linearard.model.magnitudes import LARGEST_WEIGHT, check_weights, out_of_range
from linearard.model.metadata import check_metadata, read_json
from linearard.model.restorable import RestorableModel
from linearard.rope import RopeTable
from linearard.storage import write_json

METADATA_FILE = "linearard.json"
UNFINISHED = ".unfinished"  # where a checkpoint is written before it is one
_FORMAT = 1


def save_checkpoint(restorable: RestorableModel, folder: Path, **extra: Any) -> None:
    """Write adapter, tokenizer and metadata into `folder` (made if missing): whole, or not a checkpoint.

    Of a model that is divided among processes all must call it at once, and the first one writes.

    Args:
        restorable: the model; its trained weights are written as safetensors.
        folder: of an earlier checkpoint all files are removed first; others stay, unless they have the
            name of one that is written.
        extra: JSON-able entries added to the metadata, such as the stage and step.

    Raises:
        NonFiniteLossError: a weight is not finite, or absurdly large; nothing was written.
        CheckpointError: the folder cannot be written, or has too little room.
    """
    folder = Path(folder)
    check_weights(restorable.adapter, "the trained weights")
    trained = restorable.adapter.gathered()
    if restorable.sharded and torch.distributed.get_rank():
        return
    staged = folder / UNFINISHED
    with room_for_checkpoint(folder):
        try:
            written.clear(staged)
            write_checkpoint(restorable, staged, trained, **extra)
            written.complete(staged)
            written.install(staged, folder)
        finally:
            written.clear(staged)


def write_checkpoint(
    restorable: RestorableModel, folder: Path, trained: dict[str, torch.Tensor], **extra: Any
) -> None:
    """The files of `save_checkpoint`, without its checks and the word that they are whole.

    Args:
        restorable: the model.
        folder: made if missing.
        trained: its trained weights, as `Adapter.gathered` gives them.
        extra: see `save_checkpoint`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    restorable.adapter.save(folder, trained)
    if restorable.tokenizer is not None:
        restorable.tokenizer.save_pretrained(folder)
    rope = restorable.rope
    metadata = {
        "format": _FORMAT,
        "base_model": {
            "name": restorable.name,
            "fingerprint": restorable.fingerprint,
            "load_in_4bit": restorable.packed,
            "resize_embeddings": restorable.resized,
        },
        "rope": {
            "scaling": rope.scaling,
            "native_window": rope.native_window,
            "target_window": rope.target_window,
            "tables": {
                kind: {
                    "inv_freq": table.inv_freq.tolist(),
                    "attention_scaling": table.attention_scaling,
                }
                for kind, table in rope.tables("stretched").items()
            },
        },
        "adapter": asdict(restorable.adapter.config),
        **extra,
    }
    write_json(folder / METADATA_FILE, metadata)


def read_metadata(folder: Path) -> dict[str, Any]:
    """The metadata of a checkpoint folder.

    Raises:
        CheckpointError: the folder holds no checkpoint of this project, or one of another format.
    """
    path = folder / METADATA_FILE
    if not path.is_file():
        raise CheckpointError(
            expected=f"a checkpoint folder with {METADATA_FILE}",
            got=f"none at {folder}",
            fix="Give a folder that `linearard train` wrote, for instance RUN/final.",
        )
    metadata = read_json(path)
    found = metadata.get("format") if isinstance(metadata, dict) else None
    if found != _FORMAT:
        raise CheckpointError(
            expected=f"checkpoint format {_FORMAT}",
            value=found,
            fix="Use the version of linearard that wrote it.",
        )
    check_metadata(metadata, path)
    return metadata


def load_weights(restorable: RestorableModel, folder: Path) -> dict[str, Any]:
    """Read a checkpoint's trained weights into a model made with the same recipe.

    Returns:
        The checkpoint's metadata.

    Raises:
        CheckpointError: it belongs to another base model, another RoPE, or another adapter, is damaged,
            or its weights are not finite.
    """
    metadata = read_metadata(folder)
    stored = metadata["base_model"]
    packed = stored.get("load_in_4bit", False)
    if packed != restorable.packed:
        raise CheckpointError(
            expected=f"a base model with model.load_in_4bit {str(packed).lower()}, as in training",
            got=str(restorable.packed).lower(),
            fix=f"Set model.load_in_4bit to {str(packed).lower()}.",
        )
    if stored["fingerprint"] != restorable.fingerprint:
        raise CheckpointError(
            expected=f"a checkpoint of {restorable.name or 'this model'}",
            got=f"one of {stored['name'] or 'another model'} (weights or architecture differ)",
            fix="Name the base model it was trained from.",
        )
    live = restorable.rope.tables("stretched")
    tables = {
        kind: RopeTable(torch.tensor(t["inv_freq"], dtype=torch.float32), t["attention_scaling"])
        for kind, t in metadata["rope"]["tables"].items()
    }
    if tables.keys() != live.keys() or not all(tables[k].same_as(live[k]) for k in live):
        raise CheckpointError(
            expected=f"a checkpoint trained for RoPE {_short(restorable.rope.scaling)}",
            got=f"one trained for {_short(metadata['rope']['scaling'])}",
            fix="Use the rope section of the checkpoint's own recipe.",
        )
    weights = restorable.adapter.read(folder)
    check_undamaged(folder, METADATA_FILE, restorable.adapter.weights_file)
    if found := out_of_range(weights.items(), LARGEST_WEIGHT):
        raise CheckpointError(
            expected=f"finite weights, none beyond {LARGEST_WEIGHT:.0e}",
            got=f"{found} in {folder}",
            fix="Use an earlier checkpoint; lower learning_rate where it was trained.",
        )
    restorable.adapter.take(weights)
    return metadata


def check_undamaged(folder: Path, *names: str) -> None:
    """Compare files of a checkpoint with what `complete.json` says of them, where it is there.

    Raises:
        CheckpointError: a file is missing, cut or changed.
    """
    if not (folder / written.COMPLETE).exists():
        return
    if found := written.damage(folder, names or None):
        raise CheckpointError(
            expected=f"the checkpoint as it was written in {folder}",
            got=f"a damaged or changed one ({found})",
            fix="Use another checkpoint, or write it anew with `linearard train RECIPE --resume`.",
        )


def load_restored(
    folder: str | Path, model: ModelConfig | None = None, **model_overrides: Any
) -> RestorableModel:
    """Load base model and checkpoint together, ready for evaluation or export.

    Args:
        folder: a checkpoint.
        model: where the base model is; default: the name the checkpoint remembers.
        model_overrides: fields of `ModelConfig` for that default, such as `device`.

    Raises:
        CheckpointError: see `read_metadata` and `load_weights`.
        ModelError: the base model cannot be loaded.
    """
    folder = Path(folder)
    metadata = read_metadata(folder)
    base = metadata["base_model"]
    flags = ("load_in_4bit", "resize_embeddings")
    remembered = {"name": base["name"]} | {flag: base.get(flag) or False for flag in flags}
    model = model or ModelConfig(**(remembered | model_overrides))
    try:
        adapter = AdapterConfig(**metadata["adapter"])
    except TypeError as error:  # an unknown field
        raise CheckpointError(
            expected=f"the fields of an adapter in {folder / METADATA_FILE}",
            got=str(error),
            fix="Use the version of linearard that wrote it.",
        ) from error
    restorable = RestorableModel.load(
        model,
        metadata["rope"]["scaling"],
        adapter,
        trainable=False,
    )
    load_weights(restorable, folder)
    return restorable


def _short(scaling: dict[str, Any]) -> str:
    shown = {k: v for k, v in scaling.items() if not isinstance(v, list)}
    return ", ".join(f"{k}={v}" for k, v in shown.items())
