"""Draw what `soak` has noted over time: FILE.json becomes FILE.svg beside it.

python -m benchmarks soak_plot benchmarks/results/cpu/soak.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

_TITLES = {
    "rss": "memory of the process",
    "allocated": "GPU, allocated",
    "reserved": "GPU, reserved",
    "folder": "output folder",
    "log": "trainer_state.json",
}


def draw(result: dict[str, Any], to: Path) -> None:
    """Write a small plot of each measure of ``result``, and of the speed, as SVG."""
    matplotlib.use("svg")
    from matplotlib import pyplot

    series = result["series"]
    minutes = [second / 60 for second in series["seconds"]]
    names = [name for name in _TITLES if name in series]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "linearard"}):
        columns = -(-(len(names) + 1) // 2)
        figure, grid = pyplot.subplots(2, columns, figsize=(9, 4.6), layout="constrained")
        first, *others = grid.flat
        for axes, name in zip(others, names, strict=False):
            axes.plot(minutes, series[name], color="#1f9e89", linewidth=1)
            axes.set_title(_TITLES[name] + _grows(result, name), fontsize=9)
            axes.set_ylabel("MiB", fontsize=8)
            axes.set_ylim(0, 1.15 * max(series[name]) or 1)
        _draw_speed(first, minutes, series)
        for axes in grid.flat[len(names) + 1 :]:
            axes.set_visible(False)
        for axes in grid.flat[: len(names) + 1]:
            axes.axvspan(0, result.get("warm_up", 0) / 60, color="#8b93a1", alpha=0.15, linewidth=0)
            axes.set_xlabel("minutes", fontsize=8)
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.2)
        figure.suptitle(f"{result['device']}, {result['steps']:,} steps of {result['model']}")
        figure.savefig(to, metadata={"Date": None})
        pyplot.close(figure)


def _grows(result: dict[str, Any], name: str) -> str:
    measures = result.get("measures", {})  # none where it was too short for a verdict
    return f": {measures[name]['mib_an_hour']:+.2f} MiB/h" if name in measures else ""


def _draw_speed(axes: Any, minutes: list[float], series: dict[str, list[float]]) -> None:
    apart = max(1, len(minutes) // 40)
    times, steps = series["seconds"][::apart], series["step"][::apart]
    speeds = [(steps[i + 1] - steps[i]) / (times[i + 1] - times[i]) for i in range(len(times) - 1)]
    axes.plot(minutes[::apart][1:], speeds, color="#5b7fd6", linewidth=1)
    axes.set_title("optimizer steps a second", fontsize=9)
    axes.set_ylim(0, 1.15 * max(speeds, default=1))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks soak_plot", description=__doc__)
    parser.add_argument("file", type=Path, help="what `python -m benchmarks soak` wrote")
    file = parser.parse_args(arguments).file
    draw(json.loads(file.read_text()), file.with_suffix(".svg"))
