"""Line plots of the pages: all of one size, so that a narrow page shows them as a wide one does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from linearard.evaluation.report.curves import Curve
from linearard.evaluation.report.svg import style, to_svg
from linearard.model.view_names import ORIGINAL, RESTORED, STRETCHED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {ORIGINAL: "#8b93a1", STRETCHED: "#e2603a", RESTORED: "#1f9e89"}
OTHER_COLOURS = ("#5b7fd6", "#b07aa1", "#c9a227", "#7a9a3b", "#c2567a", "#4ba3c7", "#8a6d3b")
_SIZE = (4.3, 2.7)  # inches: a page of 400 px shows its 9 points as 10 px


@dataclass(frozen=True)
class Panel:
    """A drawing with its own title, which may be empty."""

    svg: str
    title: str = ""


def colour(view: str, views: Mapping[str, Any]) -> str:
    """The colour of a view, the same in every plot."""
    others = [name for name in views if name not in COLOURS]
    return COLOURS.get(view) or OTHER_COLOURS[others.index(view) % len(OTHER_COLOURS)]


def in_order(views: Mapping[str, Any]) -> dict[str, Any]:
    """The views, restored beside original: what a narrow page shows side by side."""
    first = [view for view in (ORIGINAL, RESTORED, STRETCHED) if view in views]
    return {view: views[view] for view in dict.fromkeys([*first, *views])}


def tokens(count: int) -> str:
    """A number of tokens in few letters: 8k, 1,000."""
    return f"{count // 1024}k" if count % 1024 == 0 else f"{count:,}"


def shortened(name: str, most: int = 16) -> str:
    """A name that leaves room for the plot."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def token_plot(
    curves: Mapping[str, Curve],
    colours: Mapping[str, str],
    name: str,
    x_label: str,
    y_label: str,
    *,
    ticks: Sequence[int] = (),
    least: int = 2,
) -> list[Panel]:
    """Lines over a number of tokens, on a log scale.

    Args:
        curves: by name of the line.
        colours: the same names to colours.
        name: of the drawing; unique in the page.
        x_label, y_label: of the axes.
        ticks: tokens that are marked; default: those of the points.
        least: points that a line needs; without such a line there is no panel.
    """
    curves = {line: curve for line, curve in curves.items() if curve.x}
    if not any(len(curve.x) >= least for curve in curves.values()):
        return []
    with style():
        axes = _axes()
        for line, curve in curves.items():
            axes.plot(curve.x, curve.y, "o-", color=colours[line], label=shortened(line))
            if curve.band is not None:
                axes.fill_between(curve.x, *curve.band, color=colours[line], alpha=0.15, lw=0)
        axes.set_xscale("log", base=2)
        marked = ticks or sorted({int(x) for curve in curves.values() for x in curve.x})
        axes.set_xticks(marked, [tokens(count) for count in marked])
        axes.minorticks_off()
        return [_finish(axes, name, x_label, y_label)]


def position_ticks(window: int) -> list[int]:
    """Tokens that are marked over a window: each twice the one before."""
    return [64 * 2**i for i in range(20) if 64 * 2**i <= window]


def training_plots(training: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Panel]:
    """Training loss over steps, a panel a stage."""
    panels = []
    for index, (stage, log) in enumerate(training.items()):
        points = [
            (entry["step"], entry["loss"])
            for entry in log
            if entry.get("step") is not None and entry.get("loss") is not None
        ]
        if points:
            with style():
                axes = _axes()
                marker = "o-" if len(points) < 3 else "-"
                axes.plot(*zip(*points, strict=True), marker, color=COLOURS[RESTORED])
                panels.append(_finish(axes, f"training{index}", "step", "loss", stage))
    return panels


def relation_plots(relations: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Panel]:
    """Relation KL of every layer, a panel a relation, a line a view."""
    panels = []
    for index, name in enumerate(relation_names(relations)):
        with style():
            axes = _axes()
            for view, layers in relations.items():
                if name in layers:
                    shade = colour(view, relations)
                    axes.plot(layers[name], ".-", color=shade, label=shortened(view))
            title = RELATION_TITLES.get(name, name)
            panels.append(_finish(axes, f"relations{index}", "layer", "KL (nats)", title))
    return panels


RELATION_TITLES = {
    "qk": "attention (qk)",
    "q": "queries with queries (q)",
    "k": "keys with keys (k)",
    "v": "values with values (v)",
}


def relation_names(relations: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Relations that a view has, attention first."""
    found = dict.fromkeys(name for view in relations.values() for name in view)
    return [
        *(n for n in RELATION_TITLES if n in found),
        *(n for n in found if n not in RELATION_TITLES),
    ]


def _axes() -> Axes:
    from matplotlib.figure import Figure

    return Figure(figsize=_SIZE, layout="constrained").add_subplot()


def _finish(axes: Axes, name: str, x_label: str, y_label: str, title: str = "") -> Panel:
    _log_if_wide(axes)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if any(not line.get_label().startswith("_") for line in axes.get_lines()):
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
    return Panel(to_svg(axes.figure, name), title)


def _log_if_wide(axes: Axes) -> None:
    """A log scale where the values span more than a factor of five."""
    values = [float(y) for line in axes.get_lines() for y in line.get_ydata()]
    positive = [value for value in values if value > 0]
    if len(positive) == len(values) and max(positive) > 5 * min(positive):
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
