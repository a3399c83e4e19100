"""Several processes that find each other as under torchrun, forked from one that has imported everything."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

_LIMIT_SECONDS = 240


def start(work: Callable[[int], int], processes: int, log: Path) -> list[int]:
    """Fork; the ids of the children, whose output goes to `log`, with the rank behind it.

    Args:
        work: is given the rank; its answer is the exit code.
        processes: how many; one alone is not told of any others.
        log: a path.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if not child:
            code = 1
            try:
                signal.alarm(_LIMIT_SECONDS)  # processes that wait for each other for ever
                if processes > 1:
                    os.environ |= _launched(rank, processes, port)
                output = os.open(f"{log}.{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
                os.dup2(output, 1)
                os.dup2(output, 2)
                code = work(rank)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return children


def wait(children: list[int]) -> list[int]:
    """Exit codes, negative for a signal; the first to fail ends the others, as a launcher would."""
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        child, status = os.waitpid(-1, 0)
        if child not in children:
            continue
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child]:
            for other in set(children) - codes.keys():
                os.kill(other, signal.SIGKILL)
    return [codes[child] for child in children]


def together(work: Callable[[int], int], processes: int, log: Path) -> None:
    """Start and wait; every process must succeed."""
    codes = wait(start(work, processes, log))
    if any(codes):
        said = "\n".join(Path(f"{log}.{rank}").read_text()[-4000:] for rank in range(processes))
        raise AssertionError(f"{log.name} ended with {codes}:\n{said}")


def _launched(rank: int, processes: int, port: int) -> dict[str, str]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
    numbers |= {"LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1"} | {name: str(number) for name, number in numbers.items()}
