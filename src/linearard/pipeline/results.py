"""Where an evaluation goes: found good before anything is measured, and never in a user's file's place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from linearard.errors import CheckpointError
from linearard.evaluation import comparison_table, write_report
from linearard.model import check_can_be_made, room_for_checkpoint, written
from linearard.storage import write_json
from linearard.train import REPORT_FILE, RESULT_FILE

_AGAIN = "Free some, and evaluate again; the table above is whole."


def check_results_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that `write_results` must not write into; nothing is changed.

    Raises:
        CheckpointError: an evaluation is there already, or a file that is not ours has its name.
    """
    check_can_be_made(folder)
    there = [name for name in (RESULT_FILE, REPORT_FILE) if (folder / name).exists()]
    if there and not overwrite:
        raise CheckpointError(
            expected="a folder without an evaluation",
            got=f"{folder / there[0]}, which exists",
            fix="Give --overwrite or another --output-dir.",
        )
    ours = written.noted(folder) or set()
    for name in there:
        if name not in ours:
            raise CheckpointError(
                expected="to replace an earlier evaluation alone",
                got=f"{folder / name}, which linearard evaluate has not written",
                fix="Give another --output-dir: files that linearard did not write are left alone.",
            )


def claim_results_folder(folder: Path) -> None:
    """Make the folder and note what will be in it: so it is known that it can be written.

    Raises:
        CheckpointError: it cannot.
    """
    with room_for_checkpoint(folder, "Free some, or give another --output-dir."):
        folder.mkdir(parents=True, exist_ok=True)
        written.note(folder, [RESULT_FILE, REPORT_FILE])
        written.probe(folder)


def write_results(result: dict[str, Any], folder: Path, recipe: dict[str, Any]) -> None:
    """Print the table of an evaluation, then write `evaluation.json` and `report.html`.

    Raises:
        CheckpointError: they cannot be written; the table is printed all the same.
    """
    print(comparison_table(result), flush=True)
    with room_for_checkpoint(folder, _AGAIN):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RESULT_FILE, result)
        write_report(result, folder / REPORT_FILE, recipe=recipe)
