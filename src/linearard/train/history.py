"""A log of bounded length: evenly spaced over all of a stage, with its newest part whole."""

from __future__ import annotations

from typing import Any

#: Each of some 400 bytes, in memory, in every checkpoint and in the report.
MOST_ENTRIES = 2000


def thin_out(history: list[dict[str, Any]], every: int) -> None:
    """Drop entries of losses, in place, where there are too many.

    Which stay depends on their steps alone, so that a resumed stage has the same log.

    Args:
        history: `Trainer`'s `log_history`, oldest first.
        every: steps between two entries.
    """
    if len(history) <= MOST_ENTRIES:
        return
    newest = history[-1].get("step", 0) // every
    stride = 1
    while newest > stride * MOST_ENTRIES // 2:
        stride *= 2
    history[:-1] = [
        entry
        for entry in history[:-1]
        if "loss" not in entry or entry["step"] // every % stride == 0
    ]
