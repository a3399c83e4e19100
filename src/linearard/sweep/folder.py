"""The folder of a sweep: whose it is, and what in it is finished."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from linearard.errors import CheckpointError
from linearard.model import written
from linearard.recipe.yaml_text import parse_yaml
from linearard.storage import begun, write_text
from linearard.sweep.plan import Job, Sweep
from linearard.train import RECIPE_FILE, RESULT_FILE

SWEEP_FILE, VIEWS = "sweep.yaml", ".views"
RESULTS = ("sweep.json", "sweep.md", "sweep.html")
_LOCK = ".lock"
#: Parts of a recipe that do not decide the result of a run.
_FREE_TO_CHANGE = ("output_dir", "data.cache_dir")


@dataclass(frozen=True)
class Task:
    """A run that is not finished.

    Attributes:
        job: what to run.
        fresh: whether an earlier run in its folder is removed first.
    """

    job: Job
    fresh: bool


def unfinished(sweep: Sweep, *, resume: bool, overwrite: bool) -> list[Task]:
    """What is left to run; nothing is written.

    Args:
        sweep: the plan.
        resume: finished runs stay.
        overwrite: earlier runs are replaced: with `resume` those whose recipe has changed, without
            it all of them.

    Raises:
        CheckpointError: the folder holds something else, or an earlier sweep that neither flag allows
            to touch, or an arm of it has changed.
    """
    with _writable(sweep.folder):
        check_folder(sweep.folder, resume or overwrite)
        tasks = []
        for job in sweep.jobs:
            changed = _changes(job)
            if changed and not overwrite:
                raise CheckpointError(
                    expected=f"arm {job.arm!r} as {job.folder} was started with",
                    got=", ".join(changed[:3]),
                    fix="Rename the arm, or give --resume --overwrite to replace what has changed.",
                )
            if changed or not resume or not is_finished(job):
                tasks.append(Task(job, fresh=bool(changed) or not resume))
        return tasks


def is_finished(job: Job) -> bool:
    """Whether the run has its result."""
    return (job.folder / RESULT_FILE).is_file()


@contextlib.contextmanager
def claimed(sweep: Sweep, *, keep: bool) -> Iterator[None]:
    """Hold the folder of a sweep and note down what it is; no other sweep gets it meanwhile.

    Args:
        sweep: the plan.
        keep: whether measured views of an earlier sweep still count.

    Raises:
        CheckpointError: the folder is in use, or cannot be written.
    """
    from filelock import FileLock, Timeout

    with contextlib.ExitStack() as stack:
        with _writable(sweep.folder):
            sweep.folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(FileLock(sweep.folder / _LOCK, timeout=0))
            except Timeout:
                raise CheckpointError(
                    expected="an output folder in which no other sweep runs",
                    got=f"{sweep.folder}, which another process is using",
                    fix="Wait for it, end it, or choose another output_dir.",
                ) from None
            written.note(sweep.folder, [SWEEP_FILE, *RESULTS, VIEWS])
            if not keep:
                shutil.rmtree(sweep.folder / VIEWS, ignore_errors=True)
            text = yaml.safe_dump(sweep.source, sort_keys=False)
            write_text(sweep.folder / SWEEP_FILE, text)
        yield


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


def check_folder(folder: Path, may_hold_a_sweep: bool = True) -> None:
    """Refuse a folder that is none for a sweep to write into.

    Raises:
        CheckpointError: it holds anything else, or an earlier sweep though it may not.
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(
            expected="output_dir to be a folder",
            got=f"a file at {folder}",
            fix="Choose another output_dir.",
        )
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    # A sweep killed in its first moment leaves its lock and the beginning of its file.
    ignored = (_LOCK, written.RECORD)
    names = [n for n in names if n not in ignored and begun(n) not in (SWEEP_FILE, written.RECORD)]
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    if names and SWEEP_FILE not in (written.noted(folder) or ()):
        raise CheckpointError(
            expected="an empty or new output folder, or one of an earlier sweep",
            got=f"{folder} holding {shown}, which linearard sweep has not written there",
            fix="Choose another output_dir: files that linearard did not write are left alone.",
        )
    if names and not may_hold_a_sweep:
        raise CheckpointError(
            expected="an empty or new output folder",
            got=f"{folder} with an earlier sweep ({shown})",
            fix="Give --resume to go on, --overwrite to run all of it anew, or another output_dir.",
        )


def _changes(job: Job) -> list[str]:
    """How the recipe differs from the one in the run's folder, if there is one."""
    path = job.folder / RECIPE_FILE
    if not path.is_file():
        return []
    return list(_differences(parse_yaml(path.read_text(), str(path)), job.recipe.source, ""))


def _differences(before: Any, now: Any, name: str) -> Iterator[str]:
    ordered = name == "stages" or (name.startswith("stages.") and name.endswith(".parts"))
    same_order = not ordered or list(before or ()) == list(now or ())
    if (before == now and same_order) or name in _FREE_TO_CHANGE:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        if not same_order and set(before) == set(now):
            yield f"order of {name}: {', '.join(before)} -> {', '.join(now)}"
        for key in dict.fromkeys([*before, *now]):
            inner = f"{name}.{key}" if name else str(key)
            yield from _differences(before.get(key), now.get(key), inner)
    else:
        yield f"{name}: {before!r} -> {now!r}"
