"""Evaluations on disk, drawn again: one in full, or many side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from linearard.errors import CheckpointError
from linearard.evaluation import render_report, render_runs
from linearard.model import room_for_checkpoint
from linearard.model.metadata import read_json
from linearard.train import RECIPE_FILE, RESULT_FILE

#: Where an evaluation of a run may be, below what was named.
_PLACES = (".", "evaluation", "final/evaluation")


def report_runs(paths: Sequence[Path], output: Path, *, overwrite: bool) -> Path:
    """Write a page of evaluations.

    Args:
        paths: folders of runs, or their files.
        output: the page.
        overwrite: replace it, if it is there.

    Returns:
        `output`.

    Raises:
        CheckpointError: an evaluation is missing or broken, or `output` exists.
    """
    if output.exists() and not overwrite:
        raise CheckpointError(
            expected="a new file",
            got=f"{output}, which exists",
            fix="Give --overwrite or --output.",
        )
    files = list(dict.fromkeys(_evaluation_file(path) for path in paths))
    names = _names(files)
    results = {name: _read(file) for name, file in zip(names, files, strict=True)}
    try:
        if len(results) == 1:
            page = render_report(*results.values(), recipe=_recipe(files[0].parent))
        else:
            page = render_runs(results)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            expected="evaluations as linearard writes them",
            got=f"one that cannot be drawn ({type(error).__name__}: {error})",
            fix="Evaluate again, or leave it out.",
        ) from error
    with room_for_checkpoint(output.parent, "Free some, or give another --output."):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page, encoding="utf-8")
    return output


def _evaluation_file(path: Path) -> Path:
    if path.is_file():
        return path
    for place in _PLACES:
        if (path / place / RESULT_FILE).is_file():
            return path / place / RESULT_FILE
    raise CheckpointError(
        expected=f"a run that was evaluated, with {RESULT_FILE}",
        got=str(path),
        fix="Evaluate it with `linearard evaluate RUN`, or name the file.",
    )


def _read(path: Path) -> dict[str, Any]:
    result = read_json(path)
    views = result.get("views") if isinstance(result, dict) else None
    if not isinstance(views, dict) or not views or not isinstance(result.get("meta"), dict):
        raise CheckpointError(
            expected=f"an evaluation in {path}",
            got="JSON without views or meta",
            fix="Name the evaluation.json that linearard wrote.",
        )
    return result


def _names(files: Sequence[Path]) -> list[str]:
    """As much of the end of every path as tells it from the others."""
    parts = [
        [part for part in file.resolve().parent.parts if part not in ("evaluation", "final")]
        for file in files
    ]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(file) for file in files]


def _recipe(folder: Path) -> dict[str, Any] | None:
    """The recipe beside an evaluation, where there is one that can be read."""
    path = folder / RECIPE_FILE
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) else None
