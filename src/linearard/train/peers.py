"""Processes of one training: which one speaks, and one that hangs found by its silence.

A collective would wait for half an hour.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist

#: A thread says so this often that its process is alive, and after so long without a word it hangs.
BEAT_SECONDS, PATIENCE_SECONDS = 2.0, 60.0
_ENDED = b"ended"


@contextlib.contextmanager
def watching_peers(accelerator: Any) -> Iterator[None]:
    """End this process, with a message, where another of the same training has fallen silent.

    One that is stopped, swapped out or on a machine that is gone would keep the others waiting in a
    collective until `ddp_timeout`. What was saved before is kept.

    Args:
        accelerator: of `Trainer`; with one process nothing is watched.
    """
    if accelerator.num_processes == 1 or not dist.is_initialized():
        yield
        return
    # A connection of its own: the first one is busy while its process waits for others.
    store = dist.distributed_c10d._get_default_store().clone()
    watch = _Watch(store, dist.get_rank(), dist.get_world_size())
    watch.beat()
    accelerator.wait_for_everyone()
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        watch.ended.set()
        thread.join()


class _Watch:
    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._beats = 0
        self.ended = threading.Event()

    def beat(self, word: bytes | None = None) -> None:
        self._beats += 1
        self._store.set(_key(self._rank), word or str(self._beats))

    def run(self) -> None:
        peers = [rank for rank in range(self._size) if rank != self._rank]
        heard: dict[int, tuple[bytes, float]] = {}
        before = time.monotonic()
        try:
            while not self.ended.wait(BEAT_SECONDS):
                self.beat()
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

    def _end(self, silent: list[int]) -> None:
        if self._rank == min(set(range(self._size)) - set(silent)):
            print(
                "\nlinearard: error: expected every process to go on, got nothing from process "
                f"{', '.join(map(str, silent))} for {PATIENCE_SECONDS:.0f} s (stopped, swapped out, or its "
                "machine is gone). Mend that, and go on with --resume.",
                file=sys.stderr,
                flush=True,
            )
        os._exit(2)


def _key(rank: int) -> str:
    return f"linearard/alive/{rank}"
