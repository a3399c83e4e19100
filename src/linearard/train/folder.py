"""The folder of a run: made ours before anything is written, never at the cost of a user's own files."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from linearard.errors import CheckpointError
from linearard.model import written
from linearard.recipe.former_names import with_current_names
from linearard.recipe.recipe import Recipe
from linearard.recipe.yaml_text import parse_yaml
from linearard.storage import begun, remove_beginnings, write_text
from linearard.train import checkpoints

RECIPE_FILE, FINAL = "recipe.yaml", "final"
RESULT_FILE, REPORT_FILE = "evaluation.json", "report.html"
#: Of TensorBoard's files, which a run that is refused may leave, and a new one does not touch.
TENSORBOARD_FOLDER = "runs"
_LOCK = ".lock"
#: Parts of a recipe that do not decide what is trained.
_FREE_TO_CHANGE = ("output_dir", "report_to", "evaluation", "data.cache_dir", "model.sharded")


class Claim(contextlib.ExitStack):
    """An output folder that no other process gets until this is closed, or this process ends.

    Until `take` nothing in it has changed: what is refused before then costs no earlier run.
    """

    _begin: Callable[[], None] | None = None

    def take(self) -> None:
        """Remove the run that is to be replaced, and leave the recipe of the new one.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        begin, self._begin = self._begin, None
        if begin is not None:
            begin()

    def pop_all(self) -> Claim:
        """See `ExitStack`."""
        other = super().pop_all()
        other._begin, self._begin = self._begin, None
        return other


def stage_folder(index: int, name: str) -> str:
    """Name of the folder of a stage, of which `index` others come before it."""
    return f"stage{index + 1}-{name}"


def claim_folder(folder: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> Claim:
    """Make the output folder ours, or refuse; nothing a user made is ever removed.

    Killed at any moment, it leaves a folder that the same command takes up again.

    Args:
        folder: made if missing.
        recipe: what the run will do; kept in the folder as `recipe.yaml`.
        resume: the folder may hold a run of the same recipe, which stays.
        overwrite: the folder may hold any run, which is removed.

    Returns:
        The claim, which has still to be taken.

    Raises:
        CheckpointError: the folder holds something else, is in use, or cannot be written.
    """
    with _writable(folder):
        ours = _has_run(folder, resume=resume, overwrite=overwrite)
        if ours and not overwrite:
            _check_same_recipe(folder, recipe)
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with Claim() as claim:
            claim.enter_context(_lock(folder))
            claim.callback(_unmake, made)
            if not (ours and resume):
                claim._begin = functools.partial(_begin_run, folder, recipe, replacing=ours)
            return claim.pop_all()


def check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse what `claim_folder` would refuse whatever the recipe, long before there is one.

    Raises:
        CheckpointError: the folder holds something else, or a run that is neither resumed nor replaced.
    """
    with _writable(folder):
        _has_run(folder, resume=resume, overwrite=overwrite)


def _begin_run(folder: Path, recipe: Recipe, *, replacing: bool) -> None:
    stages = [stage_folder(index, name) for index, name in enumerate(recipe.stages)]
    with _writable(folder):
        if replacing:
            _remove_run(folder)
        _check_nothing_in_the_way(folder, [*stages, FINAL, RESULT_FILE, REPORT_FILE])
        # Noted before anything has these names: what has one later is ours.
        written.note(folder, [RECIPE_FILE, RESULT_FILE, REPORT_FILE, FINAL, *stages])
        text = yaml.safe_dump(recipe.source, sort_keys=False)
        remove_beginnings(folder, {RECIPE_FILE})
        write_text(folder / RECIPE_FILE, text)


def _unmake(folders: list[Path]) -> None:
    """Take away folders that were made for a run which was refused before it wrote anything."""
    with contextlib.suppress(OSError):
        if folders and [path.name for path in folders[0].iterdir()] == [_LOCK]:
            (folders[0] / _LOCK).unlink()
            for folder in folders:
                folder.rmdir()


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            expected="an output folder that can be written",
            got=f"{folder}: {error.strerror or error}",
            fix="Choose another output_dir.",
        ) from error


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / _LOCK, timeout=0):
            yield
    except Timeout:
        raise CheckpointError(
            expected="an output folder in which nobody else is training",
            got=f"{folder}, which another process is using",
            fix="Wait for it, end it (a killed launcher may leave its workers behind), or choose "
            "another output_dir.",
        ) from None


def _has_run(folder: Path, *, resume: bool, overwrite: bool) -> bool:
    """Whether the folder holds an earlier run; refuses one that must not be touched.

    A recipe alone is a run that has not begun: a dry run has written it, or the run was ended at once.
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(
            expected="output_dir to be a folder",
            got=f"a file at {folder}",
            fix="Choose another output_dir.",
        )
    content = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    # A run killed in its first moment leaves at most the beginnings of its files.
    ignored = (_LOCK, written.RECORD, TENSORBOARD_FOLDER)
    content = [
        n for n in content if n not in ignored and begun(n) not in (RECIPE_FILE, written.RECORD)
    ]
    shown = ", ".join(content[:3]) + (", …" if len(content) > 3 else "")
    ours = RECIPE_FILE in content and RECIPE_FILE in (written.noted(folder) or ())
    if content and not ours:
        raise CheckpointError(
            expected="an empty or new output folder, or one of an earlier run",
            got=f"{folder} holding {shown}, which linearard has not written there",
            fix="Choose another output folder (--output, output_dir): files that linearard did not write "
            "are left alone.",
        )
    if ours and content != [RECIPE_FILE] and not (resume or overwrite):
        raise CheckpointError(
            expected="an empty or new output folder",
            got=f"{folder} with an earlier run ({shown})",
            fix="Give --resume to go on, --overwrite to replace the run, or another output_dir.",
        )
    return ours


def remove_weights(folder: Path) -> None:
    """Remove the checkpoints of a run, all its stages' and the final one; nothing that is not ours."""
    for name in sorted(written.noted(folder) or ()):
        path = folder / name
        if path.parent != folder or path.is_symlink() or not path.is_dir():
            continue
        if name == FINAL:
            checkpoints.remove_with_results(path)
        else:
            checkpoints.remove_stage(path)


def _remove_run(folder: Path) -> None:
    """Remove what the run has written, but for the recipe, which makes the folder ours until it is new."""
    remove_weights(folder)
    for name in written.noted(folder) - {RECIPE_FILE}:
        path = folder / name
        if path.parent == folder and path.is_file():
            path.unlink()


def _check_nothing_in_the_way(folder: Path, names: list[str]) -> None:
    """Refuse what a run would go on from, or write over, though it is not the run's."""
    for name in names:
        path = folder / name
        if path.is_file() or (path.is_dir() and checkpoints.latest_complete(path)):
            raise CheckpointError(
                expected=f"a folder without {name}, which this run will write",
                got=f"{path}, which linearard has not written there",
                fix="Move it, or choose another output_dir.",
            )


def _check_same_recipe(folder: Path, recipe: Recipe) -> None:
    stored = parse_yaml((folder / RECIPE_FILE).read_text(), str(folder / RECIPE_FILE))
    stored = with_current_names(stored) if isinstance(stored, dict) else stored
    before, now = _flat(stored), _flat(recipe.source)
    changed = sorted(
        key
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key)
        and not any(key == free or key.startswith(f"{free}.") for free in _FREE_TO_CHANGE)
    )
    if changed:
        raise CheckpointError(
            expected=f"the recipe that {folder} was started with",
            got=", ".join(f"{k}: {before.get(k)!r} -> {now.get(k)!r}" for k in changed[:3]),
            fix="Give --overwrite to replace it, or another output folder; --resume wants the same recipe.",
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted name, and the order of stages and parts, which decides what they read."""
    if not isinstance(tree, dict) or not tree:  # `relations: {}` is not the same as none given
        return {prefix: tree}
    ordered = prefix == "stages" or (prefix.startswith("stages.") and prefix.endswith(".parts"))
    order = {f"order of {prefix}": ", ".join(map(str, tree))} if ordered else {}
    return order | {
        name: value
        for key, child in tree.items()
        for name, value in _flat(child, f"{prefix}.{key}" if prefix else str(key)).items()
    }
