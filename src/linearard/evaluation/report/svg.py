"""Drawings that can stand in an HTML page: figures of matplotlib, and grids of shaded cells."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#012345"  # stands for the page's text colour, light or dark
SHADES = 12


@contextmanager
def style() -> Iterator[None]:
    """Figures made and drawn in here take the colour of the page's text and never parse a name."""
    import matplotlib

    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    with matplotlib.rc_context(
        {
            **dict.fromkeys(names, INK),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": INK,
            "grid.alpha": 0.12,
            "font.size": 9,
            "legend.frameon": False,
            "legend.fontsize": 8.5,
            "legend.handlelength": 1.4,
            "legend.columnspacing": 1.0,
            "lines.linewidth": 1.7,
            "lines.markersize": 4,
            "svg.fonttype": "none",
            "svg.hashsalt": "linearard",
            "text.parse_math": False,
        }
    ):
        yield


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element without a link to anything outside.

    Args:
        figure: drawn inside `style`.
        name: unique in the page; identifiers in the SVG begin with it.
    """
    stream = io.StringIO()
    figure.savefig(
        stream,
        format="svg",
        transparent=True,
        metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
    )
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    head, body = text.split(">", 1)
    head = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", head)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)  # the viewBox scales it to the page
    body = body.replace(INK, "currentColor")
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    return f'{head} role="img">{body}'


def shaded_cells(
    values: Sequence[Sequence[float]], low: float, high: float, *, square: bool
) -> str:
    """A grid of cells, the darker the larger on a log scale, as an `<svg>` in the page's own colour.

    Cells of one shade are one path, so that thousands of them stay small.

    Args:
        values: rows from the top, of any lengths.
        low, high: what has no shade, and what has the full one; both above 0.
        square: keep the cells square; else they fill the room that the page gives.
    """
    paths: list[list[str]] = [[] for _ in range(SHADES + 1)]
    span = math.log(high / low)
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            share = math.log(max(value, low) / low) / span if span > 0 else float(value >= high)
            paths[round(SHADES * min(share, 1.0))].append(f"M{x} {y}h1v1h-1z")
    width, height = max(map(len, values), default=0), len(values)
    drawn = "".join(
        f'<path fill-opacity="{shade / SHADES:.2f}" d="{"".join(cells)}"/>'
        for shade, cells in enumerate(paths)
        if shade and cells
    )
    aspect = "" if square else ' preserveAspectRatio="none"'
    return f'<svg class="cells" viewBox="0 0 {width} {height}"{aspect} role="img">{drawn}</svg>'
