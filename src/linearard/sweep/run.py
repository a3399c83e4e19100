"""Run a sweep: check every arm, run what is left, write down what was found."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from linearard.errors import CheckpointError, DeviceError, RecipeError
from linearard.recipe.trackers import check_trackers
from linearard.storage import write_json, write_text
from linearard.sweep.bench import Bench, Outcome
from linearard.sweep.folder import RESULTS, Task, check_folder, claimed, unfinished
from linearard.sweep.page import render_page
from linearard.sweep.plan import Sweep
from linearard.sweep.results import Results, failures, headline, read_results, table
from linearard.sweep.workers import Crew


def run_sweep(
    sweep: Sweep,
    *,
    workers: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> Results:
    """Run every arm of a sweep with every seed; a run that fails does not end it.

    Args:
        sweep: from `load_sweep`.
        workers: how many runs at a time. With one they happen in this process.
        resume, overwrite: what may happen to an earlier sweep, see `unfinished`.
        progress: show a bar while tokenising.
        report: is told a line about each run.

    Raises:
        UserError: an arm cannot work, or the folder does not fit; nothing was trained.
    """
    _check_processes(sweep, workers)
    check_trackers({name: None for job in sweep.jobs for name in job.recipe.report_to})
    tasks = unfinished(sweep, resume=resume, overwrite=overwrite)
    size = min(workers, len(tasks)) if workers > 1 else 0
    with Crew(size, sweep.folder, sweep.keep_checkpoints) as crew:  # imports while this one checks
        bench = Bench(sweep.folder, sweep.keep_checkpoints)
        for job in {task.job.arm: task.job for task in tasks}.values():
            bench.check(job, progress=progress)
        outcomes = crew.run(tasks, bench.sources) if size else _in_this_process(bench, tasks)
        with claimed(sweep, keep=resume), contextlib.closing(outcomes) as ended:
            return _reported(sweep, ended, len(tasks), report)


def _reported(
    sweep: Sweep, ended: Iterator[Outcome], number_of_tasks: int, report: Callable[[str], None]
) -> Results:
    for number, outcome in enumerate(ended, 1):
        text = "failed" if outcome.message else headline(outcome.job)
        report(f"[{number}/{number_of_tasks}] {outcome.job}: {outcome.seconds:.1f} s, {text}")
    return write_results(sweep)


def write_results(sweep: Sweep) -> Results:
    """Write `sweep.json`, `sweep.md` and `sweep.html` from the results that are there.

    Raises:
        CheckpointError: a result is broken, or there is no folder of the sweep.
    """
    if not sweep.folder.is_dir():
        raise CheckpointError(
            expected=f"the folder of a sweep in {sweep.folder}",
            got="no such folder",
            fix="Run the sweep first, or give the --output-dir it ran with.",
        )
    check_folder(sweep.folder)
    results = read_results(sweep)
    data, text_file, page = RESULTS
    write_json(sweep.folder / data, results.as_json())
    text = "\n".join([table(results, style="github"), "", *failures(results)])
    write_text(sweep.folder / text_file, text.rstrip() + "\n")
    write_text(sweep.folder / page, render_page(sweep.folder.name, results))
    return results


def _in_this_process(bench: Bench, tasks: list[Task]) -> Iterator[Outcome]:
    try:
        yield from map(bench.attempt, tasks)
    finally:
        bench.close()


def _check_processes(sweep: Sweep, workers: int) -> None:
    if workers < 1:
        raise RecipeError(
            expected="at least one worker", got=str(workers), fix="Correct --workers."
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DeviceError(
            expected="one process",
            got="a distributed launcher",
            fix="Start the sweep without it; --workers N starts processes.",
        )
    numbered = {job.recipe.model.device for job in sweep.jobs if ":" in job.recipe.model.device}
    if workers > 1 and numbered:
        raise DeviceError(
            expected="model.device to be auto, cuda or cpu with several workers",
            got=", ".join(sorted(numbered)),
            fix="Leave the number out: each worker gets its own GPU.",
        )
