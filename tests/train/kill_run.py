"""Kill a command in a process of its own at a moment that new files tell."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import small_run

_POLL_SECONDS = 0.0005


@dataclass(frozen=True)
class Kill:
    """When to kill: once `files` new files were seen below a folder, and `delay` seconds later.

    Files appear one by one while a checkpoint is written, so a small number hits the middle of one.
    """

    files: int
    delay: float
    below: str = "run"

    def __str__(self) -> str:
        return f"{self.files} new files below {self.below} + {1e3 * self.delay:.0f} ms"


def kill_once(arguments: list[str], place: Path, kill: Kill) -> str:
    """Start the command line and SIGKILL it; what it was writing at that moment."""
    watched = place / kill.below
    before = set(watched.rglob("*"))
    with small_run.start(*arguments) as running:
        new: list[Path] = []
        while running.poll() is None and len(new) < kill.files:
            time.sleep(_POLL_SECONDS)
            new += [path for path in _found(watched) if path not in before]
            before.update(new)
        time.sleep(kill.delay)
        ended = running.poll()
        running.kill()
        _, errors = running.outputs()
    if ended not in (None, 0):
        raise AssertionError(f"the command failed by itself with {ended}:\n{errors}")
    if ended == 0:
        return "had ended before"
    return f"killed, last seen: {new[-1].relative_to(place) if new else 'nothing'}"


def _found(folder: Path) -> list[Path]:
    """What lies below a folder that another process is changing."""
    try:
        return sorted(folder.rglob("*"))
    except FileNotFoundError:
        return []
