"""All that two processes and one do for the tests beside this: `python work.py FOLDER`, once for all of them.

Most of the time of a process is its imports: this one has them, and forks the others.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import matplotlib.figure  # noqa: F401 - of every run's report
import torch
import torch.distributed as dist
import torch.distributed.fsdp
import torch.distributed.tensor

import linearard.pipeline.run
import linearard.train.trainer  # noqa: F401 - with all that transformers' trainer imports
import tiny
from parallel import forks, loading, runs
from parallel.steps import CASES, steps


def _steps_of_two(rank: int, path: Path) -> int:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = [steps(case, rank) for case in CASES]
    if rank == 0:
        torch.save(found, path)
    dist.destroy_process_group()
    return 0


def _steps_of_one(path: Path) -> int:
    torch.set_num_threads(1)
    found = {}
    for case in CASES:
        if case.alone not in found:
            found[case.alone] = steps(case.alone, 0)
    torch.save([found[case.alone] for case in CASES], path)
    return 0


def main(folder: Path) -> None:
    """Do it all."""
    os.fsync = lambda descriptor: None  # what tests write need not outlast a crash of the machine
    tiny.tiny_restorable()  # which imports what forks would import each for themselves
    gc.freeze()  # nor need each look through all of that for garbage, which copies its memory
    forks.together(lambda rank: _steps_of_two(rank, folder / "two.pt"), 2, folder / "two.log")
    forks.together(lambda rank: _steps_of_one(folder / "one.pt"), 1, folder / "one.log")
    forks.together(lambda rank: loading.compare(folder), 2, folder / "loading.log")
    runs.all_runs(folder)
    gc.unfreeze()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
