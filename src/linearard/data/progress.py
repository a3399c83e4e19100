"""Progress: a bar in a terminal; in a log, where a bar would fill pages, a plain line now and then."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

#: Between two lines in a log: seldom enough for hours, often enough to see that something happens.
LINE_SECONDS = 30.0


def progress_bar(steps: Any = None, *, shown: bool, **options: Any) -> tqdm:
    """A bar of tqdm where standard error is a terminal, and else what writes lines in its place.

    Args:
        steps: what is counted while it is gone through; None: `update` and `refresh` are called.
        shown: False: neither.
        options: of tqdm: `desc`, `total`, `unit`, and for a terminal `leave` and `unit_scale`.
    """
    if sys.stderr.isatty():
        return tqdm(steps, disable=not shown, **options)
    rate = {"mininterval": LINE_SECONDS, "maxinterval": LINE_SECONDS, "delay": LINE_SECONDS}
    return _Lines(steps, disable=not shown, **options | rate)


class _Lines(tqdm):
    """A line for whatever lasts: "original: pass key: 3 of 20, 61 s", and figures behind it."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line, unless what is wanted is an empty one."""
        if msg == "":
            return True
        elapsed = self.format_dict["elapsed"]
        of = f" of {self.total:,}" if self.total else ""
        unit = "" if self.unit == "it" else f" {self.unit}s"
        figures = f", {self.postfix}" if self.postfix else ""
        self.fp.write(f"{self.desc}: {self.n:,}{of}{unit}, {elapsed:.0f} s{figures}\n")
        self.fp.flush()
        return True

    def refresh(self, *args: Any, **options: Any) -> bool | None:
        """Who moves it asks after every step: not before it is time for another line."""
        if self.disable or self._time() - max(self.last_print_t, self.start_t) < LINE_SECONDS:
            return None
        self.last_print_t = self._time()
        return super().refresh(*args, **options)

    def close(self) -> None:
        """Leave the lines as they are."""
        if not self.disable:
            self.disable = True
            self._decr_instances(self)
