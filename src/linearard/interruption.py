"""Signals that end a process: after the step that is being trained, with a checkpoint; at once elsewhere.

SIGINT (Ctrl-C), SIGTERM (what schedulers send before they kill) and SIGHUP (a closed terminal) do the
same. A second one ends at once. The state is the process's, as signals are.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from linearard.processes import is_main_process

_ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
#: A launcher hands on what the terminal has sent to its processes already.
_SAME_SECONDS = 0.5
_NOTICE = "\nlinearard: {}: ending after this step, with a checkpoint; once more ends at once\n"


class Ended(KeyboardInterrupt):
    """A signal has ended what was going on.

    Args:
        number: of the signal.
        kept: the checkpoint that was saved for it, in words; empty: none.
    """

    def __init__(self, number: int, kept: str = "") -> None:
        super().__init__(number, kept)
        self.number, self.kept = number, kept

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        text = "interrupted" if self.number == signal.SIGINT else f"ended by {name}"
        return f"{text}; {self.kept}" if self.kept else text


class _State:
    """What was asked for, and whether it can wait."""

    deferring = 0
    asked = 0
    when = 0.0


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Have the signals raise `Ended`, or wait where `deferred` says so; as before afterwards.

    A signal that whoever started the process has it ignore, as `nohup` does, stays ignored.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _ENDING:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, _handle)
    _State.asked = 0
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let a first signal wait for whoever looks at `asked`.

    Raises:
        Ended: nobody did.
    """
    _State.deferring += 1
    try:
        yield
    finally:
        _State.deferring -= 1
    if asked():
        raise Ended(asked())


def asked() -> int:
    """The number of a signal that waits; 0: none."""
    return _State.asked


def _handle(number: int, frame: Any) -> None:
    again = time.monotonic() - _State.when < _SAME_SECONDS
    _State.when = time.monotonic()
    if _State.asked and again:
        return
    if _State.deferring and not _State.asked:
        _State.asked = number
        if is_main_process():
            # Not by print: the signal may have come in the middle of one.
            with contextlib.suppress(OSError):
                os.write(2, _NOTICE.format(signal.Signals(number).name).encode())
        return
    raise Ended(number)
