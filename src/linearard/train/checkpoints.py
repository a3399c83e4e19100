"""Checkpoints of a running stage: complete or not there.

A process can be killed at any moment, also while it writes. A checkpoint counts only when its marker
exists, which is written last; when one is removed, its marker goes first.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from linearard.errors import CheckpointError
from linearard.model import write_json

_MARKER = "complete.json"


def mark_complete(folder: Path) -> None:
    """Declare a folder whole."""
    write_json(folder / _MARKER, {"complete": True})


def check_same_text(stored: dict[str, Any], data: Any, checkpoint: Path | str) -> None:
    """Compare a checkpoint's metadata with the `data` entry of the run that wants to go on from it.

    Raises:
        CheckpointError: the checkpoint was made with other text or another tokenizer.
    """
    if stored.get("data") != data:
        raise CheckpointError(
            expected=f"the training text that {checkpoint} was made with",
            got="other text or another tokenizer",
            fix="Restore the text, or start again with --overwrite.",
        )


def is_complete(folder: Path) -> bool:
    """Whether `mark_complete` was reached for this folder."""
    return (folder / _MARKER).is_file()


def remove(folder: Path) -> None:
    """Delete a checkpoint; killed half-way, the rest no longer counts as one."""
    (folder / _MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder)


def remove_stage(stage_dir: Path) -> None:
    """Delete a stage's folder; killed half-way, none of its checkpoints counts any more."""
    for _, path in all_checkpoints(stage_dir):
        (path / _MARKER).unlink(missing_ok=True)
    shutil.rmtree(stage_dir)


def all_checkpoints(stage_dir: Path) -> list[tuple[int, Path]]:
    """Folders `checkpoint-STEP` of a stage, oldest first, complete or not."""
    found = []
    for path in stage_dir.glob("checkpoint-*"):
        step = path.name.removeprefix("checkpoint-")
        if path.is_dir() and step.isdigit():
            found.append((int(step), path))
    return sorted(found)


def latest_complete(stage_dir: Path) -> Path | None:
    """The newest complete checkpoint of a stage."""
    complete = [path for _, path in all_checkpoints(stage_dir) if is_complete(path)]
    return complete[-1] if complete else None


def prune(stage_dir: Path, keep: int | None) -> None:
    """Remove incomplete checkpoints and all but the newest `keep` complete ones (None: keep all)."""
    folders = [path for _, path in all_checkpoints(stage_dir)]
    complete = [path for path in folders if is_complete(path)]
    doomed = [path for path in folders if path not in complete]
    if keep is not None:
        doomed += complete[: max(len(complete) - keep, 0)]
    for path in doomed:
        remove(path)
