"""Checkpoints of a running stage: whole or not there.

A process can be killed at any moment, also while it writes, and a disk can forget. A checkpoint is written
beside its place, has a list of its files with their sizes and hashes, and gets its name when all of it is
on the disk (`linearard.model.written`). A run goes on from the newest that still is what was written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from linearard.errors import CheckpointError
from linearard.model import UNFINISHED, written

RESULTS = "evaluation"  # folder of `linearard evaluate` in a checkpoint


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


def begin(stage_dir: Path) -> Path:
    """An empty folder in which the next checkpoint of a stage is written."""
    folder = stage_dir / UNFINISHED
    written.clear(folder)
    folder.mkdir(parents=True)
    return folder


def finish(stage_dir: Path, step: int, keep: int | None) -> None:
    """Give a checkpoint that was written since `begin` its place, and remove what is no longer kept.

    Args:
        stage_dir: of the stage.
        step: number of the checkpoint.
        keep: complete checkpoints that stay; None: all.
    """
    staged = stage_dir / UNFINISHED / f"checkpoint-{step}"
    written.complete(staged)
    written.install(staged, stage_dir / staged.name)
    abandon(stage_dir)
    complete = [path for _, path in all_checkpoints(stage_dir) if written.is_complete(path)]
    kept = complete if keep is None else complete[-keep:]
    for _, path in all_checkpoints(stage_dir):
        if path not in kept:
            written.remove(path)


def abandon(stage_dir: Path) -> None:
    """Remove what was written since `begin`."""
    written.clear(stage_dir / UNFINISHED)


def remove_stage(stage_dir: Path) -> None:
    """Remove the checkpoints of a stage, their evaluations and what it noted; other files stay.

    Killed half-way, none of the checkpoints counts any more.
    """
    folders = [path for _, path in all_checkpoints(stage_dir)]
    for path in folders:
        written.withdraw(path)
    for path in folders:
        remove_with_results(path)
    abandon(stage_dir)
    written.remove_noted(stage_dir)


def remove_with_results(checkpoint: Path) -> None:
    """Remove a checkpoint and what `linearard evaluate` wrote into it; files that are not ours stay."""
    written.withdraw(checkpoint)
    for folder in (checkpoint / RESULTS, checkpoint):
        if folder.is_dir():
            written.remove_noted(folder)
    if checkpoint.is_dir():
        written.remove(checkpoint)


def all_checkpoints(stage_dir: Path) -> list[tuple[int, Path]]:
    """Folders `checkpoint-STEP` of a stage, oldest first, complete or not."""
    found = []
    for path in stage_dir.glob("checkpoint-*"):
        step = path.name.removeprefix("checkpoint-")
        if path.is_dir() and step.isdecimal():
            found.append((int(step), path))
    return sorted(found)


def latest_complete(stage_dir: Path) -> Path | None:
    """The newest complete checkpoint of a stage, by names and sizes alone."""
    complete = [path for _, path in all_checkpoints(stage_dir) if written.is_complete(path)]
    return complete[-1] if complete else None


def withdraw_damaged(stage_dir: Path) -> list[str]:
    """Let the newest complete checkpoint of a stage be one that is as it was written, byte for byte.

    Newer ones count no more.

    Returns:
        A line for each of those, which says what is damaged and what the run goes on from instead.
    """
    damaged = []
    for _, path in reversed(all_checkpoints(stage_dir)):
        if not (path / written.COMPLETE).is_file():
            continue
        found = written.damage(path)
        if not found:
            break
        damaged.append((path, found))
        written.withdraw(path)
    latest = latest_complete(stage_dir)
    instead = f"going on from {latest.name}" if latest else "the stage starts from its beginning"
    return [f"{path} is damaged ({found}); {instead}" for path, found in damaged]
