"""Several processes on one queue of runs: each holds its own bench, and may die without the others."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

from linearard import interruption
from linearard.sweep.folder import Task

_SECONDS_TO_END = 25.0  # schedulers kill 30 s after they asked


class Crew:
    """Processes that start at once and wait for tasks; leaving its context ends those that still run.

    Worker i sees the GPU i modulo their number alone. A worker that dies fails its run and is
    replaced.

    Args:
        size: how many processes.
        folder, keep_checkpoints: see `Bench`.
    """

    def __init__(self, size: int, folder: Path, keep_checkpoints: bool) -> None:
        self._arguments = folder, keep_checkpoints
        self._idle = [_Worker(index, *self._arguments) for index in range(size)]
        self._busy: dict[Any, tuple[_Worker, Task]] = {}

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, *reason: Any) -> None:
        busy = [worker for worker, _ in self._busy.values()]
        if kind is not None and issubclass(kind, interruption.Ended):
            for worker in busy:
                worker.ask_to_end()
            deadline = time.monotonic() + _SECONDS_TO_END
            for worker in busy:
                worker.wait(deadline - time.monotonic())
        for worker in [*self._idle, *busy]:
            worker.kill()

    def run(self, tasks: Sequence[Task], sources: Mapping[str, Any]) -> Iterator[Any]:
        """Run tasks in their order; yields an `Outcome` for each as it ends.

        Args:
            tasks: what to run.
            sources: of the first process's bench, so that no other reads them again.
        """
        from linearard.sweep.bench import Outcome, note_failure

        waiting, busy = deque(tasks), self._busy

        def employ(worker: _Worker) -> None:
            if waiting:
                task = waiting.popleft()
                busy[worker.line] = (worker, task)
                with contextlib.suppress(OSError):  # it died: found out when its answer is read
                    if not worker.informed:
                        worker.line.send(dict(sources))
                        worker.informed = True
                    worker.line.send(task)
            else:
                worker.dismiss()

        while self._idle:
            employ(self._idle.pop(0))
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
                    worker = _Worker(worker.index, *self._arguments)
                employ(worker)


class _Worker:
    """A process and the line to it."""

    def __init__(self, index: int, folder: Path, keep_checkpoints: bool) -> None:
        context = get_context("spawn")  # a forked process cannot use CUDA
        self.index, self.informed = index, False
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

    def ask_to_end(self) -> None:
        """Have the process end after the step that it trains, with a checkpoint."""
        self._process.terminate()

    def wait(self, seconds: float) -> None:
        """Wait for the process to end, not for ever."""
        self._process.join(max(seconds, 0))

    def kill(self) -> None:
        """End the process now."""
        self._process.kill()
        self._process.join()


def _serve(line: Any, folder: Path, keep_checkpoints: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.filterwarnings("ignore", category=FutureWarning)
    import transformers.trainer  # noqa: F401  seconds, while the first process checks

    from linearard.sweep.bench import Bench

    with contextlib.suppress(KeyboardInterrupt), interruption.listening():
        _work(line, Bench, folder, keep_checkpoints)


def _work(line: Any, bench_kind: Any, folder: Path, keep_checkpoints: bool) -> None:
    bench = None
    while True:
        try:
            # First what the first process has read, then tasks.
            if bench is None:
                bench = bench_kind(folder, keep_checkpoints, line.recv())
            task = line.recv()
        except EOFError:
            if bench is not None:
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
