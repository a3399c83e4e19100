"""A sweep as one self-contained HTML page: the table, and closeness against perplexity as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from importlib import resources
from typing import Any

from linearard.evaluation.report.svg import INK, style, to_svg
from linearard.sweep.results import Arm, Results, cells, failures


def render_page(title: str, results: Results) -> str:
    """The page; it loads nothing.

    Args:
        title: of the page.
        results: what was found.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("linearard.sweep").joinpath("sweep.html")
    headers, lines = cells(results)
    return environment.from_string(source.read_text(encoding="utf-8")).render(
        title=title,
        headers=headers,
        lines=lines,
        failures=failures(results),
        missing=[str(job) for job in results.missing],
        plots=[svg for svg in _plots(results) if svg],
    )


def _plots(results: Results) -> list[str | None]:
    """KL over perplexity at the shortest and at the longest window."""
    metrics = results.metrics.values()
    kl = next((row for row in metrics if row.kind == "kl"), None)
    if kl is None:
        return []
    windows = [r.label for r in metrics if r.kind == "perplexity" and r.group == kl.group]
    chosen = dict.fromkeys([*windows[:1], *windows[-1:]])
    return [_scatter(results.arms, x, kl.label, f"plot{i}") for i, x in enumerate(chosen)]


def _scatter(arms: list[Arm], x: str, y: str, name: str) -> str | None:
    """A small dot a run, a numbered large one an arm; None without a run that has both figures."""
    points = {
        number: [(row[x], row[y]) for row in arm.rows if _positive(row.get(x), row.get(y))]
        for number, arm in enumerate(arms, 1)
    }
    points = {number: found for number, found in points.items() if found}
    if not points:
        return None
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    colours = colormaps["tab10"].colors
    with style():
        figure = Figure(figsize=(8, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for number, found in points.items():
            colour = colours[(number - 1) % len(colours)]
            across, up = zip(*found, strict=True)
            middle = statistics.fmean(across), statistics.fmean(up)
            axes.scatter(across, up, s=14, color=colour, alpha=0.5, linewidths=0)
            axes.scatter(*middle, s=60, color=colour, edgecolors=INK, linewidths=0.6)
            axes.annotate(str(number), middle, (6, 4), textcoords="offset points", fontsize=9)
        for index, axis in enumerate((axes.xaxis, axes.yaxis)):
            _log_if_wide(axis, [point[index] for found in points.values() for point in found])
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        return to_svg(figure, name)


def _log_if_wide(axis: Any, values: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if max(values) > 5 * min(values):
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _positive(*values: Any) -> bool:
    return all(value is not None and value > 0 for value in values)
