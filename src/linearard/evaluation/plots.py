"""The plots of a report. Each returns an `<svg>` element, or None where its data is absent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from linearard.evaluation.summary import Row
from linearard.evaluation.svg import INK, style, to_svg
from linearard.model.causal_lm import ORIGINAL, RESTORED, STRETCHED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Views = Mapping[str, Mapping[str, Any]]

COLOURS = {ORIGINAL: "#8b93a1", STRETCHED: "#e2603a", RESTORED: "#1f9e89"}
OTHER_COLOURS = ("#5b7fd6", "#b07aa1", "#c9a227", "#7a9a3b")
COLUMNS = 4  # panels side by side
WIDEST = (-50, 160)  # per cent that are shown: a score near chance has intervals without end


def perplexity_plot(views: Views) -> str | None:
    """Perplexity over window length, one line a view, with 95 % intervals."""
    lines = {
        view: sorted(
            (int(window), measured["ppl"], measured["ppl_ci95"])
            for window, measured in part.get("perplexity", {}).items()
            if measured["ppl"] is not None
        )
        for view, part in views.items()
    }
    windows = sorted({window for points in lines.values() for window, *_ in points})
    if len(windows) < 2:
        return None
    with style():
        figure, (axes,) = _panels(1)
        for view, points in lines.items():
            x, y = [p[0] for p in points], [p[1] for p in points]
            axes.plot(x, y, "o-", color=colour(view, views), label=_short(view))
            low, high = ([p[2][end] if p[2] else p[1] for p in points] for end in (0, 1))
            axes.fill_between(x, low, high, color=colour(view, views), alpha=0.15, linewidth=0)
        axes.set_xscale("log", base=2)
        _token_ticks(axes, windows)
        _log_if_wide(axes, [p[1] for points in lines.values() for p in points])
        axes.set_xlabel("window (tokens)")
        axes.set_ylabel("perplexity")
        _legend_above(axes)
        return to_svg(figure, "perplexity")


def position_plot(views: Views) -> str | None:
    """Loss over the position in the longest window, one line a view."""
    windows = [int(window) for part in views.values() for window in part.get("perplexity", {})]
    longest = str(max(windows, default=0))
    lines = {
        view: [
            ((bucket["start"] + bucket["end"]) / 2, bucket["nll"])
            for bucket in part["perplexity"][longest]["by_position"]
            if bucket["nll"] is not None
        ]
        for view, part in views.items()
        if longest in part.get("perplexity", {})
    }
    return _over_positions(lines, int(longest), "loss (nats)", "position", views)


def agreement_plot(views: Views) -> str | None:
    """KL to the original over the position in the window, one line a view."""
    buckets = {v: part.get("agreement", {}).get("by_position", []) for v, part in views.items()}
    lines = {
        view: [((b["start"] + b["end"]) / 2, b["kl"]) for b in found if b["kl"] is not None]
        for view, found in buckets.items()
    }
    window = max((bucket["end"] for found in buckets.values() for bucket in found), default=0)
    return _over_positions(lines, window, "KL to original (nats)", "agreement", views)


def _over_positions(
    lines: Mapping[str, list[tuple[float, float]]],
    window: int,
    y_label: str,
    name: str,
    views: Views,
) -> str | None:
    """Points at the middles of buckets of positions, one line a view."""
    lines = {view: points for view, points in lines.items() if len(points) > 2}
    if not lines:
        return None
    with style():
        figure, (axes,) = _panels(1)
        for view, points in lines.items():
            axes.plot(
                *zip(*points, strict=True), "o-", color=colour(view, views), label=_short(view)
            )
        axes.set_xscale("log", base=2)
        _token_ticks(axes, [64 * 2**i for i in range(20) if 64 * 2**i <= window])
        _log_if_wide(axes, [y for points in lines.values() for _, y in points])
        axes.set_xlabel(f"position in a window of {window:,} tokens")
        axes.set_ylabel(y_label)
        _legend_above(axes)
        return to_svg(figure, name)


def retention_plot(rows: Sequence[Row], views: Views) -> str | None:
    """What is left of the original on every share-like metric, as bars: original = 100 %."""
    kept = [row for row in rows if row.retained]
    shown = [view for view in views if view != ORIGINAL]
    if not kept or not shown:
        return None
    height = 0.8 / len(shown)
    with style():
        figure, (axes,) = _panels(1, height=0.9 + len(kept) * (0.25 + 0.18 * len(shown)))
        for index, view in enumerate(shown):
            values = [100 * row.retained.get(view, 0) for row in kept]
            y = [row + (index - (len(shown) - 1) / 2) * height for row in range(len(kept))]
            axes.barh(y, values, height * 0.9, color=colour(view, views), label=_short(view))
            for at, value, row in zip(y, values, kept, strict=True):
                ends = [100 * end for end in row.retained_intervals.get(view, ())]
                axes.plot(ends, [at] * len(ends), color=INK, linewidth=1)
                right = min(max(value, 0, *ends), WIDEST[1] - 10) + 1
                axes.text(right, at, f"{value:.0f}", va="center", fontsize=8)
        axes.axvline(100, color=INK, linewidth=1)
        axes.set_yticks(range(len(kept)), [_short(row.label, 30) for row in kept])
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        left, right = axes.get_xlim()
        axes.set_xlim(max(left, WIDEST[0]), min(right, WIDEST[1]))
        axes.set_xlabel("% of the original's score above chance")
        _legend_above(axes)
        return to_svg(figure, "retention")


def passkey_plot(views: Views) -> str | None:
    """Heat maps of retrieval, one a view: length across, depth down."""
    cells = {view: part["passkey"]["cells"] for view, part in views.items() if "passkey" in part}
    shares = {
        view: {(cell["depth"], cell["length"]): cell["accuracy"] for cell in grid}
        for view, grid in cells.items()
    }
    depths = sorted({depth for grid in shares.values() for depth, _ in grid})
    rows = {depth: f"{depth:.0%}" for depth in depths}
    return _heat_maps(shares, rows, "passkey", "depth of the key")


def retrieval_plot(views: Views) -> str | None:
    """Heat maps of retrieval from held-out text, one a view: length across, task down."""
    shares = {
        view: {
            (task, int(length)): at["accuracy"]
            for task, measured in part["retrieval"]["tasks"].items()
            for length, at in measured["by_length"].items()
        }
        for view, part in views.items()
        if "retrieval" in part
    }
    tasks = dict.fromkeys(task for grid in shares.values() for task, _ in grid)
    return _heat_maps(shares, {task: _short(task) for task in tasks}, "retrieval", "")


def _heat_maps(
    shares: Mapping[str, Mapping[tuple[Any, int], float]],
    rows: Mapping[Any, str],
    name: str,
    caption: str,
) -> str | None:
    """Shares by (row, length in tokens) of each view; `rows` are row to label."""
    if not shares:
        return None
    lengths = sorted({length for grid in shares.values() for _, length in grid})
    with style():
        figure, panels = _panels(len(shares), height=1.1 + 0.34 * len(rows))
        for axes, (view, grid) in zip(panels, shares.items(), strict=True):
            values = [[grid.get((row, n), math.nan) for n in lengths] for row in rows]
            axes.pcolormesh(values, cmap=_heat(), vmin=0, vmax=1)
            for row, line in enumerate(values):
                for column, value in enumerate(line):
                    if not math.isnan(value):
                        axes.text(
                            column + 0.5,
                            row + 0.5,
                            f"{100 * value:.0f}",
                            ha="center",
                            va="center",
                            color="#1a1a1a",
                            fontsize=9,
                        )
            axes.set_title(_short(view))
            axes.set_xticks([i + 0.5 for i in range(len(lengths))], [_tokens(n) for n in lengths])
            axes.set_yticks([i + 0.5 for i in range(len(rows))], list(rows.values()))
            axes.invert_yaxis()
            axes.grid(False)
            axes.tick_params(length=0)
            axes.set_xlabel("prompt (tokens)")
        panels[0].set_ylabel(caption)
        return to_svg(figure, name)


def training_plot(training: Mapping[str, Sequence[Mapping[str, Any]]]) -> str | None:
    """Training loss over steps, one panel a stage."""
    stages = {
        stage: [
            (entry["step"], entry["loss"])
            for entry in log
            if entry.get("step") is not None and entry.get("loss") is not None
        ]
        for stage, log in training.items()
    }
    stages = {stage: points for stage, points in stages.items() if points}
    if not stages:
        return None
    with style():
        figure, panels = _panels(len(stages))
        for axes, (stage, points) in zip(panels, stages.items(), strict=True):
            marker = "o-" if len(points) < 3 else "-"
            axes.plot(*zip(*points, strict=True), marker, color=COLOURS[RESTORED])
            _log_if_wide(axes, [loss for _, loss in points])
            axes.set_title(_short(stage))
            axes.set_xlabel("step")
        panels[0].set_ylabel("training loss")
        return to_svg(figure, "training")


def relation_plot(relations: Mapping[str, Mapping[str, Sequence[float]]]) -> str | None:
    """Relation KL of every layer, one panel a relation, one line a view."""
    names = list(dict.fromkeys(name for view in relations.values() for name in view))
    if not names:
        return None
    with style():
        figure, panels = _panels(len(names))
        for axes, name in zip(panels, names, strict=True):
            for view, layers in relations.items():
                if name in layers:
                    axes.plot(layers[name], ".-", color=colour(view, relations), label=_short(view))
            _log_if_wide(axes, [kl for layers in relations.values() for kl in layers.get(name, ())])
            axes.set_title(_short(name))
            axes.set_xlabel("layer")
        panels[0].set_ylabel("KL (nats)")
        lines = {line.get_label(): line for axes in panels for line in axes.get_lines()}
        figure.legend(handles=list(lines.values()), loc="outside upper left", ncols=4)
        return to_svg(figure, "relations")


def _panels(count: int, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes, at most COLUMNS in a row, and inches of `height` to each row."""
    from matplotlib.figure import Figure

    columns = min(count, COLUMNS)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(6.4 if columns < 3 else 10, rows * height), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def colour(view: str, views: Mapping[str, Any]) -> str:
    """The colour of a view, the same in every plot."""
    others = [name for name in views if name not in COLOURS]
    return COLOURS.get(view) or OTHER_COLOURS[others.index(view) % len(OTHER_COLOURS)]


def _tokens(count: int) -> str:
    return f"{count // 1024}k" if count % 1024 == 0 else f"{count:,}"


def _heat() -> Any:
    """Light enough at both ends for dark numbers."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("heat", ["#f2b8a2", "#f6e7b4", "#7fcbb8"])


def _short(name: str, most: int = 16) -> str:
    """A name that leaves room for the plot."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _token_ticks(axes: Axes, counts: Sequence[int]) -> None:
    axes.set_xticks(counts, [_tokens(count) for count in counts])
    axes.minorticks_off()


def _log_if_wide(axes: Axes, values: Sequence[float]) -> None:
    """A log scale where the values span more than a factor of five."""
    positive = [value for value in values if value > 0]
    if len(positive) == len(values) and max(positive) > 5 * min(positive):
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _legend_above(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2)
