"""What a sweep found: a row a run, a line an arm with mean and standard deviation over its seeds."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from linearard.errors import CheckpointError
from linearard.evaluation import Row, summarise
from linearard.evaluation.table import MISSING, format_number
from linearard.model.view_names import ORIGINAL
from linearard.sweep.folder import is_finished
from linearard.sweep.plan import Job, Sweep
from linearard.train import RESULT_FILE


@dataclass
class Arm:
    """The runs of one arm.

    Attributes:
        name, view: the arm, and the view that counts.
        planned: how many runs it has.
        rows: what its finished runs gave, flat: `arm`, `seed`, `view`, `tokens` of training,
            `seconds` of training, `run_seconds` in all, and each metric by its label.
    """

    name: str
    view: str
    planned: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)

    def values(self, name: str) -> list[float]:
        """One figure of every finished run that has it."""
        return [row[name] for row in self.rows if row.get(name) is not None]


@dataclass
class Results:
    """Everything found so far.

    Attributes:
        arms: as given.
        metrics: by label, in reading order, a row of one of the runs: what kind it is of.
        original: metrics of the original model; empty if no run measured it.
        failures: runs that failed, with their messages.
        missing: runs that have neither result nor failure.
    """

    arms: list[Arm]
    metrics: dict[str, Row]
    original: dict[str, float]
    failures: list[tuple[Job, str]]
    missing: list[Job]

    def as_json(self) -> dict[str, Any]:
        """Plain data for `sweep.json`."""
        return {
            "rows": [row for arm in self.arms for row in arm.rows],
            "original": self.original,
            "failed": [
                {"arm": job.arm, "seed": job.seed, "message": text} for job, text in self.failures
            ],
            "missing": [{"arm": job.arm, "seed": job.seed} for job in self.missing],
        }


def read_results(sweep: Sweep) -> Results:
    """Read what the runs of a sweep left.

    Raises:
        CheckpointError: a result is broken.
    """
    results = Results([], {}, {}, [], [])
    arms: dict[str, Arm] = {}
    for job in sweep.jobs:
        if job.arm not in arms:
            arms[job.arm] = Arm(job.arm, job.view)
        arm = arms[job.arm]
        arm.planned += 1
        if is_finished(job):
            result = _read(job, job.folder / RESULT_FILE)
            metrics = summarise(result)
            arm.rows.append(_flat(job, result, metrics))
            for row in metrics:
                results.metrics.setdefault(row.label, row)
                if ORIGINAL in row.values:
                    results.original.setdefault(row.label, row.values[ORIGINAL])
        elif job.failure_note.is_file():
            results.failures.append((job, _read(job, job.failure_note)["message"]))
        else:
            results.missing.append(job)
    results.arms = list(arms.values())
    return results


def headline(job: Job) -> str:
    """The first figures of a finished run in a few words: KL and perplexity at the shortest window."""
    first: dict[str, str] = {}
    for row in summarise(_read(job, job.folder / RESULT_FILE)):
        if row.kind in ("kl", "perplexity") and job.view in row.values:
            name = "KL" if row.kind == "kl" else "perplexity"
            first.setdefault(row.kind, f"{name} {format_number(row.kind, row.values[job.view])}")
    return ", ".join(first.values())


def cells(results: Results) -> tuple[list[str], list[list[str]]]:
    """Headers and lines of the table: number, arm, runs, tokens, seconds, then each metric."""
    headers = ["#", "arm", "runs", "tokens", "s", *results.metrics]
    lines = []
    if results.original:
        figures = [
            _text(metric, [results.original[name]] if name in results.original else [])
            for name, metric in results.metrics.items()
        ]
        lines.append(["", ORIGINAL, "", "", "", *figures])
    for number, arm in enumerate(results.arms, 1):
        done = len(arm.rows)
        runs = str(done) if done == arm.planned else f"{done} of {arm.planned}"
        tokens, seconds = arm.values("tokens"), arm.values("seconds")
        figures = [_text(metric, arm.values(name)) for name, metric in results.metrics.items()]
        lines.append(
            [
                str(number),
                arm.name,
                runs,
                f"{statistics.fmean(tokens):,.0f}" if tokens else MISSING,
                f"{statistics.fmean(seconds):.1f}" if seconds else MISSING,
                *figures,
            ]
        )
    return headers, lines


def table(results: Results, *, width: int | None = None, style: str = "simple") -> str:
    """The table as text.

    Args:
        results: what was found.
        width: most characters in a line; metrics that do not fit are left out, from the last on.
        style: a format of `tabulate`.
    """
    headers, lines = cells(results)
    shown = len(headers)
    while True:
        text = tabulate(
            [line[:shown] for line in lines],
            headers[:shown],
            tablefmt=style,
            disable_numparse=True,
            colalign=["right", "left", *["right"] * (shown - 2)],
        )
        if width is None or shown <= 6 or len(text.splitlines()[0]) <= width:
            break
        shown -= 1
    if shown < len(headers):
        text += f"\n({len(headers) - shown} more columns in the files)"
    return text


def failures(results: Results) -> list[str]:
    """A line for each run that failed."""
    return [f"failed: {job}: {message}" for job, message in results.failures]


def _flat(job: Job, result: dict[str, Any], metrics: list[Row]) -> dict[str, Any]:
    stages = result.get("stages", {}).values()
    return {
        "arm": job.arm,
        "seed": job.seed,
        "view": job.view,
        "tokens": sum(stage["tokens"] for stage in stages),
        "seconds": round(sum(stage["seconds"] for stage in stages), 3),
        "run_seconds": result.get("sweep", {}).get("seconds"),
        **{row.label: row.values.get(job.view) for row in metrics},
    }


def _text(metric: Row, values: list[float]) -> str:
    """Mean, and standard deviation over seeds (n - 1) where there are several."""
    if not values:
        return MISSING
    mean = format_number(metric.kind, statistics.fmean(values))
    if len(values) == 1:
        return mean
    decimals = len(mean.partition(".")[2])
    return f"{mean} ± {statistics.stdev(values):.{decimals}f}"


def _read(job: Job, path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            expected=f"the result of {job}",
            got=f"{path}: {error}",
            fix="Remove it and give --resume.",
        ) from error
