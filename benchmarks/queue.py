"""Measurements one after another, each with its own limit: a failure or a hang costs itself alone.

    python -m benchmarks queue kernels --seconds 560 --out DIR
    python -m benchmarks queue --list

A queue is a list of commands, most wanted first, in `QUEUES`. Each runs in a process of its own, with its
output in DIR/NAME.log and what it measures in DIR; `{out}` stands for DIR, and `{model}`, `{train}`,
`{validation}` and `{tasks}` for --model, --train, --validation and --tasks. A command that would have less
than its `least` seconds left is not started. DIR/queue.json: exit code (null: not started, -9: stopped at its
limit) and seconds of each.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.record import write


@dataclass(frozen=True)
class Item:
    """One command.

    Attributes:
        name: of its log.
        command: without the interpreter: what follows `python -m`.
        least, most: seconds that it needs to be of use, and that it may have.
    """

    name: str
    command: str
    least: float
    most: float


_STAGE = "benchmarks stage1 --out {out}/stage1.json --model"
_LONG = "benchmarks stage1 --out {out}/stage1.json --stage2 --checkpointing"
_TEXT = "--model.name {model} --data.train {train} --data.validation {validation}"
QUEUES: dict[str, list[Item]] = {
    "tests": [
        Item("test_kernels", "pytest -q -m gpu tests/ops", 60, 300),
        Item("test_training", "pytest -q -m gpu tests --ignore tests/ops", 60, 300),
    ],
    "kernels": [
        Item("relation_kl", "benchmarks relation_kl --long --out {out}/relation_kl.json", 60, 300),
    ],
    "steps": [
        Item("llama2", f"{_STAGE} llama2-7b", 60, 150),
        Item(
            "step_smollm2",
            "benchmarks training_step --profile all+logit --out {out}/training_step_smollm2.json",
            40,
            120,
        ),
        Item(
            "step_llama2",
            "benchmarks training_step --model llama2-7b --tokens 4096 --batch 1 --rank 1024 --cases"
            " paper teacher-inputs-qk teacher-inputs-qk-v --out {out}/training_step_llama2_7b.json",
            60,
            150,
        ),
        Item("llama2_small", f"{_STAGE} llama2-7b --small --warm-up 3 --steps 12", 60, 120),
        Item("llama3", f"{_STAGE} llama3-8b --steps 24", 60, 120),
        Item("mistral", f"{_STAGE} mistral-7b --steps 24", 60, 120),
    ],
    "long": [
        Item(
            "llama2_32k",
            f"{_LONG} --model llama2-7b --kept-layers 20 --warm-up 2 --steps 4",
            60,
            120,
        ),
        Item(
            "llama3_32k",
            f"{_LONG} --model llama3-8b --kept-layers 20 --warm-up 2 --steps 4",
            60,
            120,
        ),
    ],
    "once": [
        Item(
            "llama3_128k",
            f"{_LONG} --model llama3-8b --tokens 131072 --warm-up 1 --steps 1 --no-profile",
            150,
            240,
        ),
        Item("llama2_naive", f"{_STAGE} llama2-7b --naive", 40, 120),
    ],
    "planner": [
        Item("planner", "benchmarks planner --out {out}/planner.json --seconds 170", 110, 200),
    ],
    "peaks": [
        Item("attention", "benchmarks attention --out {out}/attention.json", 20, 90),
        Item("peaks", "benchmarks planner --shapes --explain --out {out}/peaks.json", 60, 300),
        Item("test_attention", "pytest -q -m gpu tests/capture tests/model", 30, 120),
    ],
    "same": [
        Item(
            "same_training",
            "benchmarks same_training --model {model} --out {out}/same_training.json",
            260,
            400,
        ),
    ],
    "recovery": [
        Item(
            "recovery",
            f"linearard sweep benchmarks/sweeps/recovery.yaml --workers 3 {_TEXT}"
            " --evaluation.tasks_dir {tasks} --output-dir {out}/recovery --resume",
            120,
            570,
        ),
    ],
}


def run(items: list[Item], places: dict[str, str], seconds: float) -> dict[str, dict[str, float]]:
    """Run what there is time for; exit code and seconds by name."""
    out, start, found = Path(places["out"]), time.monotonic(), {}
    out.mkdir(parents=True, exist_ok=True)
    for item in items:
        left = seconds - (time.monotonic() - start)
        code, took = None, 0.0
        if left >= item.least:
            code, took = _launch(item, places, min(left, item.most))
        found[item.name] = {"code": code, "seconds": round(took, 1)}
        print(f"{item.name}: {_said(code)}, {took:.0f} s", flush=True)
        write(out / "queue.json", found)
    return found


def _launch(item: Item, places: dict[str, str], limit: float) -> tuple[int, float]:
    words = [word.format(**places) for word in shlex.split(item.command)]
    start = time.monotonic()
    with open(Path(places["out"]) / f"{item.name}.log", "w", encoding="utf-8") as log:
        # A session of its own: at the limit its workers end with it.
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", *words],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(_places())},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return code, time.monotonic() - start


def _places() -> list[str]:
    """Where modules are looked for: this checkout first, for the package may not be installed."""
    root = Path(__file__).parents[1]
    return [str(root / "src"), str(root), *filter(None, [os.environ.get("PYTHONPATH")])]


def _said(code: int | None) -> str:
    if code is None:
        return "not started, too little time"
    return {0: "done", -signal.SIGKILL: "stopped at its limit"}.get(code, f"failed with {code}")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks queue",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="QUEUE", help=", ".join(QUEUES))
    parser.add_argument("--out", type=Path, help="folder of logs and results")
    parser.add_argument("--seconds", type=float, default=3600, help="for all together")
    parser.add_argument("--list", action="store_true", help="show the commands and end")
    for place in ("model", "train", "validation", "tasks"):
        parser.add_argument(f"--{place}", default="", help=f"for {{{place}}}")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in QUEUES]
    if unknown:
        parser.error(f"no queue {', '.join(unknown)}; there are {', '.join(QUEUES)}")
    items = [item for name in options.names or QUEUES for item in QUEUES[name]]
    if options.list:
        for item in items:
            print(f"{item.name} ({item.least:.0f} to {item.most:.0f} s): python -m {item.command}")
        return
    if not options.names or options.out is None:
        parser.error("name a queue, and a folder with --out")
    places = {
        name: str(getattr(options, name)) for name in ("model", "train", "validation", "tasks")
    }
    missing = [
        n for n, v in places.items() if not v and any(f"{{{n}}}" in i.command for i in items)
    ]
    if missing:
        parser.error(f"{' '.join(options.names)} needs {', '.join(f'--{n}' for n in missing)}")
    found = run(items, places | {"out": str(options.out.resolve())}, options.seconds)
    if any(row["code"] != 0 for row in found.values()):
        sys.exit(1)
