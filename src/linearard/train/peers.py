"""Processes of one training: which one speaks, and one that hangs found by its silence.

A collective would wait for half an hour.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist

from linearard.errors import DeviceError

#: A thread says so this often that its process is alive, and after so long without a word it hangs.
BEAT_SECONDS, PATIENCE_SECONDS = 2.0, 60.0
_ENDED = b"ended"
_NEARLY = 0.9  # of the time that a collective may wait


@contextlib.contextmanager
def watching_peers(accelerator: Any, where: Callable[[], str], timeout: float) -> Iterator[None]:
    """End this process, with a message, where another of the same training has fallen silent or is gone.

    One that is stopped, swapped out or on a machine that is gone would keep the others waiting in a
    collective until `ddp_timeout`. What was saved before is kept.

    Args:
        accelerator: of `Trainer`; with one process nothing is watched.
        where: the step and the stage that training is in, for messages.
        timeout: seconds after which NCCL ends a process that waits, which says no more than that: before
            that, a line names the step.

    Raises:
        DeviceError: a collective failed: another process has died, or waited too long.
    """
    if accelerator.num_processes == 1 or not dist.is_initialized():
        yield
        return
    # A connection of its own: the first one is busy while its process waits for others.
    store = dist.distributed_c10d._get_default_store().clone()
    watch = _Watch(store, dist.get_rank(), dist.get_world_size(), where, timeout)
    watch.beat()
    accelerator.wait_for_everyone()
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    try:
        yield
    except RuntimeError as error:
        if not _is_of_a_collective(error):
            raise
        raise DeviceError(
            expected=f"all {watch.size} processes to go on together in {where()}",
            got=" ".join(str(error).split())[:200].rstrip("."),
            fix="See what the others said, or whether a machine is gone; mend that, and go on with --resume.",
        ) from error
    finally:
        watch.ended.set()
        thread.join()


def _is_of_a_collective(error: RuntimeError) -> bool:
    named = any(word in str(error) for word in ("NCCL", "gloo", "Gloo", "ProcessGroup"))
    return isinstance(error, dist.DistError) or named


class _Watch:
    def __init__(
        self, store: Any, rank: int, size: int, where: Callable[[], str], timeout: float
    ) -> None:
        self._where, self._timeout = where, timeout
        self._seen, self._since = "", time.monotonic()
        self._store, self._rank, self.size = store, rank, size
        self._beats = 0
        self.ended = threading.Event()

    def beat(self, word: bytes | None = None) -> None:
        self._beats += 1
        self._store.set(_key(self._rank), word or str(self._beats))

    def run(self) -> None:
        peers = [rank for rank in range(self.size) if rank != self._rank]
        heard: dict[int, tuple[bytes, float]] = {}
        before = time.monotonic()
        try:
            while not self.ended.wait(BEAT_SECONDS):
                self.beat()
                self._watch_step()
                words = self._store.multi_get([_key(rank) for rank in peers])
                now = time.monotonic()
                if now - before > PATIENCE_SECONDS / 2:
                    heard.clear()  # this process was the one that stood still
                before = now
                for rank, word in zip(peers, words, strict=True):
                    if rank not in heard or heard[rank][0] != word:
                        heard[rank] = (word, now)
                silent = [
                    rank
                    for rank, (word, when) in heard.items()
                    if word != _ENDED and now - when > PATIENCE_SECONDS
                ]
                if silent:
                    self._end(silent)
            self.beat(_ENDED)
        except (RuntimeError, dist.DistError):  # the launcher is gone, and ends its processes
            return

    def _watch_step(self) -> None:
        """Name a step that takes so long that NCCL is about to end it."""
        now = time.monotonic()
        if self._where() != self._seen:
            self._seen, self._since = self._where(), now
        elif now - self._since > _NEARLY * self._timeout and self._rank == 0:
            print(
                f"\nlinearard: {self._seen} has taken {now - self._since:.0f} s; a process that waits for "
                f"others longer than {self._timeout:.0f} s (ddp_timeout) is ended by NCCL.",
                file=sys.stderr,
                flush=True,
            )
            self._since = now

    def _end(self, silent: list[int]) -> None:
        if self._rank == min(set(range(self.size)) - set(silent)):
            print(
                "\nlinearard: error: expected every process to go on, got nothing from process "
                f"{', '.join(map(str, silent))} for {PATIENCE_SECONDS:.0f} s in {self._where()} (stopped, "
                "swapped out, or its machine is gone). Mend that, and go on with --resume.",
                file=sys.stderr,
                flush=True,
            )
        os._exit(2)


def _key(rank: int) -> str:
    return f"linearard/alive/{rank}"
