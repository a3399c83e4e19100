"""For how long a model's attention is observed, and windows are shared: see `AttentionTap`."""

from __future__ import annotations

import contextlib
from typing import Any

from linearard.capture.sequence import SharedSequence


class StopForward(Exception):
    """Raised by an observer that has seen the last layer it needs; ends the forward pass there."""


# Not generators: the frame of one keeps the exception that it has caught, which keeps the frames that it came
# through, with all their tensors, until the garbage collector happens to come.


class Step(contextlib.AbstractContextManager[None]):
    """See `AttentionTap.step`."""

    def __init__(self, tap: Any) -> None:
        self._tap = tap

    def __enter__(self) -> None:
        self._tap._observer, self._tap._in_step = None, True

    def __exit__(self, *_: Any) -> None:
        self._tap._observer, self._tap._in_step = None, False
        self._tap.sequence = None


class Observing(contextlib.AbstractContextManager[None]):
    """See `AttentionTap.observing`."""

    def __init__(self, tap: Any, observer: Any, recomputed: bool) -> None:
        self._tap, self._observer, self._recomputed = tap, observer, recomputed

    def __enter__(self) -> None:
        self._before, self._tap._observer = self._tap._observer, self._observer
        self._tap.ended_in = None

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> bool:
        stopped = kind is not None and issubclass(kind, StopForward)
        good = kind is None or stopped
        if not (good and self._recomputed):
            self._tap._observer = self._before
        self._tap.ended_in = None
        return stopped


class Sharing(contextlib.AbstractContextManager[None]):
    """See `AttentionTap.sharing`."""

    def __init__(self, tap: Any, sequence: SharedSequence | None, recomputed: bool) -> None:
        self._tap, self._sequence, self._recomputed = tap, sequence, recomputed

    def __enter__(self) -> None:
        self._before, self._tap.sequence = self._tap.sequence, self._sequence

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if not self._recomputed or kind is not None:
            self._tap.sequence = self._before
