"""Train for a long time in one process, and look whether anything grows that should not.

    python -m benchmarks soak --seconds 1200 --out DIR                  a GPU, or this CPU
    python -m benchmarks soak --seconds 1200 --out DIR --model FOLDER   a model of your own

One stage of the ordinary recipe (relations and logits, AdamW, a log entry every step, a checkpoint every 200
steps, a look at held-out text as often) of a small random Llama, or of the model that is named. After each
second or so, when an optimizer step has ended, it is noted what there is. At the end of the time the process
sends itself SIGTERM, which saves a checkpoint and ends the run, as a scheduler would. It writes DIR/soak.svg,
where matplotlib is installed, and, every minute and at the end, DIR/soak.json:

    device, torch, triton, transformers, python, commit, date    where and when
    model, window, batch, seconds    what
    warm_up    seconds that are not judged: a quarter of the time, and until the log is full (2,000 steps)
    steps, kept_step    trained; of the checkpoint that SIGTERM left (null: the run is not over)
    steps_per_second    first and last third after the warm-up
    measures: NAME -> first_mib, last_mib (medians of the first and the last third after the warm-up),
        mib_an_hour (their difference, over the time between them), flat (see LIMITS)
        of rss (memory of the process), allocated and reserved (of the GPU, by PyTorch), folder (all files
        of the run) and log (`trainer_state.json`)
    flat       whether all are
    series     seconds, step, and MiB by measure, some 400 of each
Without some time after the warm-up there is no verdict: warm_up, measures and flat are missing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGTERM, raise_signal
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.record import add_arguments, circumstances, write
from benchmarks.small_runs import RANDOM_MODEL, one_stage, write_random_model
from linearard import interruption
from linearard.recipe import recipe_from_dict
from linearard.train import run_recipe
from linearard.train.history import MOST_ENTRIES

#: Measure -> MiB an hour, and MiB in all, up to which it counts as flat.
LIMITS = {
    "rss": (16.0, 1.0),
    "allocated": (1.0, 0.0),
    "reserved": (1.0, 0.0),
    # The log halves whenever it is full, in each of two checkpoints.
    "folder": (1.0, 1.0),
    "log": (1.0, 0.5),
}
_WARM_UP, _FEWEST = 0.25, 12
_POINTS = 400
_NOTED_SECONDS = 60


class Samples:
    """What there is, about once a second, at the end of an optimizer step.

    Args:
        run: the output folder.
        seconds: so long after the first step the process is sent SIGTERM.
        on_gpu: whether the GPU's memory is looked at.
        note: called every minute.
    """

    def __init__(
        self, run: Path, seconds: float, on_gpu: bool, note: Callable[[Samples], None]
    ) -> None:
        self._run, self._seconds, self._on_gpu, self._note = run, seconds, on_gpu, note
        self._every = max(0.2 if seconds < 60 else 1.0, seconds / _POINTS)
        self._began = self._noted = 0.0
        self.steps = 0
        self.series: dict[str, list[float]] = {}

    def __call__(self, *_: Any) -> None:
        """After an optimizer step."""
        if not self.steps:
            self._began = time.monotonic()
        self.steps += 1
        now = time.monotonic() - self._began
        if now >= len(self.series.get("seconds", ())) * self._every:
            self._take(now)
        if now >= self._seconds:
            raise_signal(SIGTERM)
        elif now - self._noted >= _NOTED_SECONDS:
            self._noted = now
            self._note(self)

    def _take(self, now: float) -> None:
        found = {"seconds": round(now, 2), "step": self.steps, "rss": _resident()}
        if self._on_gpu:
            found["allocated"] = torch.cuda.memory_allocated() / 2**20
            found["reserved"] = torch.cuda.memory_reserved() / 2**20
        sizes = {p: p.stat().st_size / 2**20 for p in self._run.rglob("*") if p.is_file()}
        logs = {p: size for p, size in sizes.items() if p.name == "trainer_state.json"}
        found["folder"] = sum(sizes.values())
        found["log"] = max(logs.values(), default=0.0)
        for name, value in found.items():
            self.series.setdefault(name, []).append(round(value, 3))


def _resident() -> float:
    """MiB of the process that are in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def judge(series: dict[str, list[float]], seconds: float) -> dict[str, Any]:
    """What became more after the warm-up, by measure, and how fast it went.

    Args:
        series: as `Samples` takes it.
        seconds: how long it is to run.

    Returns:
        `warm_up`, `measures`, `flat` and `steps_per_second` of the file; nothing where too little
        came after the warm-up.
    """
    both = zip(series["seconds"], series["step"], strict=True)
    warm = [s >= _WARM_UP * seconds and step > MOST_ENTRIES for s, step in both]
    late = [i for i, counts in enumerate(warm) if counts]
    if len(late) < _FEWEST:
        return {}
    third = len(late) // 3
    parts = late[:third], late[-third:]

    def medians(values: list[float]) -> tuple[float, float]:
        first, last = (statistics.median(values[i] for i in part) for part in parts)
        return first, last

    hours = (lambda t: (t[1] - t[0]) / 3600)(medians(series["seconds"]))
    measures = {}
    for name in LIMITS.keys() & series.keys():
        first, last = medians(series[name])
        an_hour, in_all = LIMITS[name]
        speed = (last - first) / hours
        measures[name] = {
            "first_mib": round(first, 3),
            "last_mib": round(last, 3),
            "mib_an_hour": round(speed, 3),
            "flat": speed <= an_hour or last - first <= in_all,
        }
    return {
        "warm_up": series["seconds"][late[0]],
        "measures": dict(sorted(measures.items())),
        "flat": all(measure["flat"] for measure in measures.values()),
        "steps_per_second": {
            name: round(_speed(series, part), 3)
            for name, part in zip(("first", "last"), parts, strict=True)
        },
    }


def _speed(series: dict[str, list[float]], part: list[int]) -> float:
    steps, seconds = (
        [series[name][i] for i in (part[0], part[-1])] for name in ("step", "seconds")
    )
    return (steps[1] - steps[0]) / (seconds[1] - seconds[0])


def soak(
    recipe: dict[str, Any], seconds: float, note: Callable[[Samples], None]
) -> tuple[Samples, int]:
    """Train by a recipe for so long.

    Args:
        recipe: of one stage.
        seconds: after so many the run is ended.
        note: called every minute, with what there is so far.

    Returns:
        The samples, and the step of the checkpoint that is left.

    Raises:
        ValueError: the run ended by itself.
    """
    run = Path(recipe["output_dir"])
    samples = Samples(run, seconds, recipe["model"]["device"] == "cuda", note)
    hook = register_optimizer_step_post_hook(samples)
    try:
        with interruption.listening():
            run_recipe(recipe_from_dict(recipe), progress=False)
    except interruption.Ended as ended:
        print(ended)
    else:
        raise ValueError(f"the stage ended after {samples.steps} steps, before its time")
    finally:
        hook.remove()
    kept = [int(path.name.rpartition("-")[2]) for path in run.glob("*/checkpoint-*")]
    return samples, max(kept)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument(
        "--model", help="folder, hub id or GGUF file; default: a small random Llama"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--window", type=int, help="tokens; default: 1024 on a GPU, 64 on a CPU")
    parser.add_argument("--batch", type=int, default=2, help="windows in a step")
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    window = options.window or (1024 if on_gpu else 64)
    where = {
        **circumstances(options.commit, options.device),
        "model": Path(options.model).name if options.model else RANDOM_MODEL[on_gpu],
        "window": window,
        "batch": options.batch,
        "seconds": options.seconds,
    }

    def note(samples: Samples, kept: int | None = None) -> dict[str, Any]:
        result = {**where, "steps": samples.steps, "kept_step": kept}
        result |= judge(samples.series, options.seconds)
        write(options.out / "soak.json", result | {"series": samples.series})
        return result

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model or write_random_model(folder / "model", window, on_gpu)
        recipe = one_stage(
            folder,
            model,
            options.device,
            window=window,
            max_steps=2**31 - 1,
            per_device_train_batch_size=options.batch,
            learning_rate=1e-5,
            save_steps=200,
            held_out={"window": window, "sequences": 2, "every": 200},
        )
        samples, kept = soak(recipe, options.seconds, note)
    result = note(samples, kept)
    print(result)
    try:
        from benchmarks.soak_plot import draw
    except ImportError as error:  # matplotlib
        print(f"not drawn ({error}): python -m benchmarks soak_plot FILE, where it is installed")
    else:
        draw(result | {"series": samples.series}, options.out / "soak.svg")
