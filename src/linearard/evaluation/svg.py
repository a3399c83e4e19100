"""Matplotlib figures as SVG that can stand in an HTML page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#012345"  # stands for the page's text colour, light or dark


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
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": INK,
            "grid.alpha": 0.12,
            "font.size": 10,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
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


def is_wide(svg: str) -> bool:
    """Whether the drawing needs the whole width of the page."""
    width = re.search(r'viewBox="0 0 ([\d.]+)', svg)
    return width is not None and float(width[1]) > 500
