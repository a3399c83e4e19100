"""The folder of an export: refused before anything is loaded, filled aside, and put in place when proven."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from linearard.errors import CheckpointError, RecipeError
from linearard.model import (
    UNFINISHED,
    check_can_be_made,
    check_room,
    names_gguf,
    room_for_checkpoint,
    written,
)

FORMATS = ("merged", "adapter", "gguf")
EXPORT_FILE = "linearard_export.json"
_FIX = "Free some, or choose another folder."


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


@contextlib.contextmanager
def filled_aside(folder: Path, size: int) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder to fill beside its place; when the block ends well, what is in it is put in place.

    A killed or refused export is none, and an earlier one stays: its listed files are removed at the end,
    and no others.

    Args:
        folder: where the export shall be.
        size: bytes that it will have, about.

    Yields:
        The folder to fill, and a dictionary to fill with what `linearard_export.json` shall say.

    Raises:
        CheckpointError: the disk has no room, or cannot be written.
    """
    staged, about = folder / UNFINISHED, {}
    made = not folder.exists()
    with room_for_checkpoint(folder, _FIX):
        written.clear(staged)
        staged.mkdir(parents=True)
        try:
            check_room(folder, size, "the exported model", _FIX)
            yield staged, about
            written.complete(staged, EXPORT_FILE, about)
            written.install(staged, folder, EXPORT_FILE)
        finally:
            written.clear(staged)
            if made:
                with contextlib.suppress(OSError):  # full: the export is there
                    folder.rmdir()
