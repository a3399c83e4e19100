"""Kill a run at hard moments, resume it each time, and compare with a run that nobody disturbed.

By hand: python tests/train/kill_run.py --kills 10
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import small_run
import tiny

_POLL_SECONDS = 0.0005


@dataclass(frozen=True)
class Kill:
    """When to kill: once `files` new files were seen below a folder, and `delay` seconds later.

    Files appear one by one while a checkpoint is written, so a small number hits the middle of one.
    """

    files: int
    delay: float
    below: str = "run"

    def __str__(self) -> str:
        return f"{self.files} new files below {self.below} + {1e3 * self.delay:.0f} ms"


def random_kills(count: int, seed: int) -> list[Kill]:
    """At start-up, in the tokenisation, anywhere in the stages, and in the last checkpoint of all."""
    source = random.Random(seed)
    anywhere = [
        Kill(source.randint(1, 24), source.uniform(0, 0.02)) for _ in range(max(count - 3, 0))
    ]
    start = [Kill(0, source.uniform(0, 4)), Kill(1, source.uniform(0, 0.3), "cache")]
    return [*start, *anywhere, Kill(1, source.uniform(0, 0.01), "run/final")][-count:]


def kill_once(arguments: list[str], place: Path, kill: Kill) -> str:
    """Start the command and SIGKILL it; what it was writing at that moment."""
    watched = place / kill.below
    before = set(watched.rglob("*"))
    process = subprocess.Popen(
        arguments,
        env=small_run.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        new: list[Path] = []
        while process.poll() is None and len(new) < kill.files:
            time.sleep(_POLL_SECONDS)
            new += [path for path in _found(watched) if path not in before]
            before.update(new)
        time.sleep(kill.delay)
        ended = process.poll()
    finally:
        process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    if ended not in (None, 0):
        raise AssertionError(f"the command failed by itself with {ended}:\n{errors}")
    if ended == 0:
        return "had ended before"
    return f"killed, last seen: {new[-1].relative_to(place) if new else 'nothing'}"


def kill_and_compare(
    folder: Path, kills: list[Kill], report: Callable[[str], Any] = lambda line: None
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Weights of an undisturbed run, and of one killed at the given moments and resumed each time.

    Args:
        folder: works here.
        kills: in the order in which they happen.
        report: is told what happens.
    """
    base = tiny.save_tiny_base(folder / "base")
    weights = []
    for name in ("undisturbed", "killed"):
        place = folder / name
        recipe = small_run.small_recipe(
            place,
            base,
            stages__restoration__sequences=24,
            stages__cpt__sequences=16,
        )
        # Enough text for a tokenisation that can be caught in the act.
        small_run.write_text(place / "train", documents=60, words=2500)
        path = small_run.write_recipe(recipe, place / "recipe.yaml")
        arguments = small_run.command("train", str(path), "--quiet", "--resume")
        for kill in kills if name == "killed" else []:
            report(f"{kill}: {kill_once(arguments, place, kill)}")
        start = time.monotonic()
        result = subprocess.run(
            arguments, env=small_run.environment(), capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, result.stderr
        report(f"{name}: finished in {time.monotonic() - start:.1f} s")
        weights.append(small_run.final_bytes(place / "run"))
    return weights[0], weights[1]


def _found(folder: Path) -> list[Path]:
    """What lies below a folder that another process is changing."""
    try:
        return sorted(folder.rglob("*"))
    except FileNotFoundError:
        return []


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kills = random_kills(args.kills, args.seed)
        undisturbed, killed = kill_and_compare(Path(folder), kills, print)
    print("identical" if undisturbed == killed else "DIFFERENT")
    return int(undisturbed != killed)


if __name__ == "__main__":
    sys.exit(_main())
