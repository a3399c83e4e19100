"""`python ARGUMENTS` in processes forked from one that has imported what linearard does.

A new interpreter imports for ten seconds of processor time before it does anything. What is forked begins
where that ends, with its own arguments, environment, folder and output, and can be killed like any other.
Nothing has been computed in the process that it comes from, so threads and random states are new.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from typing import Any, Self

_IMPORTED = [
    "linearard.cli.main",
    "linearard.export.save",
    "linearard.pipeline",
    "linearard.sweep.bench",
    "linearard.train.trainer",
    "matplotlib.figure",
    "peft",
    "pytest",  # which each process looks for, as the program that it was started by
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
]
_POLL_SECONDS = 0.002
_GRACE_SECONDS = 0.2  # launchers look at their processes no more often


class Forked:
    """Processes that work together, or one: what `subprocess.Popen` is for new interpreters.

    Leaving its context kills those that still run.

    Args:
        arguments: what would follow `python`: `-m MODULE ...` or `SCRIPT ...`.
        processes: how many; several find each other as under torchrun.
        environment: of all of them.
    """

    def __init__(
        self, arguments: Sequence[str], *, processes: int = 1, environment: Mapping[str, str]
    ) -> None:
        self.arguments = list(arguments)
        self._outputs = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115  closed at the end
        self._asked_to_end = False
        port = str(_free_port())
        # What they are forked from serves others later, and must not take itself for one of a launch.
        context = context_of_forks(environment)
        self.processes = []
        for rank in range(processes):
            own = dict(environment) | (_launched(rank, processes, port) if processes > 1 else {})
            self.processes.append(self._start(context, own))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()
        for file in self._outputs:
            file.close()

    def _start(self, context: Any, environment: dict[str, str]) -> Any:
        # Files travel by name: other processes know them by other numbers.
        names = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in self._outputs]
        process = context.Process(
            target=_work, args=(self.arguments, environment, os.getcwd(), names)
        )
        process.start()
        return process

    def poll(self) -> int | None:
        """The exit code once all have ended, as a launcher's: that of the first that failed.

        The first to fail has the others asked to end.
        """
        codes = [process.exitcode for process in self.processes]
        failed = [code for code in codes if code]
        if None not in codes:
            return failed[0] if failed else 0
        if failed and not self._asked_to_end:
            self._asked_to_end = True
            time.sleep(_GRACE_SECONDS)
            for process in self.processes:
                process.terminate()
        return None

    def kill(self) -> None:
        """SIGKILL to all."""
        for process in self.processes:
            process.kill()
            process.join()

    def wait(self, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Exit code and output; an error after so many seconds."""
        until = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                self.kill()
                raise subprocess.TimeoutExpired(self.arguments, seconds, *self.outputs())
            time.sleep(_POLL_SECONDS)
        return subprocess.CompletedProcess(self.arguments, code, *self.outputs())

    def outputs(self) -> tuple[str, str]:
        """Standard output and standard error so far."""
        found = []
        for file in self._outputs:
            found.append(os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode())
        return found[0], found[1]


def context_of_forks(environment: Mapping[str, str]) -> Any:
    """Of `multiprocessing`: its processes are forked from the one that has imported all.

    Args:
        environment: what that one is started with, if it has not been: torch reads some of it early.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    before = dict(os.environ)
    with contextlib.ExitStack() as stack:
        stack.callback(_set_environment, before)
        _set_environment(environment)
        forkserver.ensure_running()
    return context


def _set_environment(environment: Mapping[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def _work(
    arguments: list[str], environment: dict[str, str], folder: str, outputs: list[str]
) -> None:
    """In the new process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _set_environment(environment)
    os.chdir(folder)
    for number, name in enumerate(outputs, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), number)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def _launched(rank: int, processes: int, port: str) -> dict[str, str]:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
    names |= {"LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in names.items()}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
