"""What every result file says about where it came from, and how it is written."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("triton", "transformers")  # those that a figure may depend on, where installed


def add_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """`--out`, which may be `required`, and `--commit`."""
    parser.add_argument("--out", type=Path, required=required)
    parser.add_argument(
        "--commit", help="default: that of the working tree, or unknown where there is none"
    )


def circumstances(commit: str | None, device: str = "cuda") -> dict[str, Any]:
    """Device, versions, commit and date.

    Args:
        commit: what is measured, where the tree's own git cannot be asked.
        device: "cuda" or "cpu".
    """
    on_gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name()
        if on_gpu
        else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        **{name: found for name in _PACKAGES if (found := _version(name))},
        **({"cudnn": torch.backends.cudnn.version()} if on_gpu else {}),
        "python": platform.python_version(),
        "commit": commit or _head(),
        "date": datetime.date.today().isoformat(),
    }


def quantiles(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """p20, p50 and p80."""
    at = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    found = torch.tensor(values, dtype=torch.float64).quantile(at).tolist()
    return {name: round(x, digits) for name, x in zip(("p20", "p50", "p80"), found, strict=True)}


def in_turns(names: Iterable[str], rounds: int) -> Iterator[str]:
    """All names in every round, in orders that put each as often behind every other.

    On a GPU near its power limit a measurement depends on what ran just before it. The orders are the
    rows of a Williams design: n of them, or 2n for an odd n; then they come again.
    """
    names = list(names)
    n = len(names)
    first = [(i + 1) // 2 if i % 2 else -i // 2 % n for i in range(n)]  # 0, 1, n - 1, 2, n - 2, …
    rows = [[(i + shift) % n for i in first] for shift in range(n)]
    if n % 2:
        rows += [row[::-1] for row in rows]
    for turn in range(rounds):
        yield from (names[i] for i in rows[turn % len(rows)])


def write(path: Path, result: dict[str, Any]) -> None:
    """Write the result file, its folder made where missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def _head() -> str:
    """The commit of the working tree; "unknown" in a copy that git knows nothing of."""
    head = ["git", "rev-parse", "HEAD"]
    try:
        return subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        print("no commit can be read here: name it with --commit", file=sys.stderr)
        return "unknown"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
