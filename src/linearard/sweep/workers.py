"""Several processes on one queue of runs: each holds its own bench, and may die without the others."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

from linearard.sweep.folder import Task


def run_in_processes(
    tasks: Sequence[Task], workers: int, folder: Path, keep_checkpoints: bool
) -> Iterator[Any]:
    """Run tasks in `workers` processes; yields an `Outcome` for each as it ends.

    Worker i sees the GPU i modulo their number alone. A worker that dies fails its run and is
    replaced.

    Args:
        tasks: taken in this order.
        workers: how many processes; not more are started than there are tasks.
        folder, keep_checkpoints: see `Bench`.
    """
    from linearard.sweep.bench import Outcome, note_failure

    waiting = deque(tasks)
    busy: dict[Any, tuple[_Worker, Task]] = {}

    def employ(worker: _Worker) -> None:
        if waiting:
            task = waiting.popleft()
            busy[worker.line] = (worker, task)
            with contextlib.suppress(OSError):  # it died: found out when its answer is read
                worker.line.send(task)
        else:
            worker.dismiss()

    try:
        for index in range(min(workers, len(waiting))):
            employ(_Worker(index, folder, keep_checkpoints))
        while busy:
            for line in connection.wait(list(busy)):
                worker, task = busy.pop(line)
                try:
                    outcome = line.recv()
                except (EOFError, OSError):
                    code = worker.end()
                    message = f"the worker process ended with code {code}"
                    note_failure(task.job, message)
                    outcome = Outcome(task.job, message=message, broken=True)
                yield outcome
                if outcome.broken and waiting:
                    worker.dismiss()
                    worker = _Worker(worker.index, folder, keep_checkpoints)
                employ(worker)
    finally:
        for worker, _ in busy.values():
            worker.kill()


class _Worker:
    """A process and the line to it."""

    def __init__(self, index: int, folder: Path, keep_checkpoints: bool) -> None:
        context = get_context("spawn")  # a forked process cannot use CUDA
        self.index = index
        self.line, other = context.Pipe()
        arguments = (other, folder, keep_checkpoints)
        # Not a daemon, which could not start the processes of a data loader.
        self._process = context.Process(target=_serve, args=arguments)
        with _one_gpu(index):
            self._process.start()
        other.close()  # so that the line ends when the process does

    def dismiss(self) -> None:
        """Let the process end after what it is doing."""
        self.line.close()
        self._process.join()

    def end(self) -> int | None:
        """Exit code of a process that has ended its line."""
        self._process.join()
        return self._process.exitcode

    def kill(self) -> None:
        """End the process now."""
        self._process.kill()
        self._process.join()


def _serve(line: Any, folder: Path, keep_checkpoints: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.filterwarnings("ignore", category=FutureWarning)
    from linearard.sweep.bench import Bench

    bench = Bench(folder, keep_checkpoints)
    while True:
        try:
            task = line.recv()
        except EOFError:
            bench.close()
            return
        line.send(bench.attempt(task))


def _end_with_parent() -> None:
    connection.wait([parent_process().sentinel])
    os._exit(1)


@contextlib.contextmanager
def _one_gpu(index: int) -> Iterator[None]:
    """Processes started inside see one GPU; set from within, it could come too late."""
    import torch

    name, count = "CUDA_VISIBLE_DEVICES", torch.cuda.device_count()
    before = os.environ.get(name)
    if count > 1:
        visible = before or ",".join(map(str, range(count)))
        os.environ[name] = visible.split(",")[index % count]
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before
