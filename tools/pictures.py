"""Draw the pictures of README and docs, as SVG.

    python -m tools.pictures            write docs/pictures/*.svg
    python -m tools.pictures --check    exit 1 if a file differs from what is drawn (used by the tests)

Every picture has a light card of its own behind it, so it reads the same on light and on dark pages.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"

_INK, _SOFT, _LINE, _CARD = "#1f2937", "#6b7280", "#cbd5e1", "#ffffff"
_TEACHER, _STUDENT, _LOSS = "#2563eb", "#d97706", "#b91c1c"
_FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


def text(
    x: float, y: float, words: str, *, size: int = 14, fill: str = _INK, anchor: str = "middle"
) -> str:
    """One line of text."""
    weight = ' font-weight="600"' if size > 14 else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"{weight}>'
        f"{escape(words)}</text>"
    )


def box(
    x: float, y: float, width: float, height: float, *, stroke: str = _LINE, fill: str = _CARD
) -> str:
    """A rounded box."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" '
        f'fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>'
    )


def arrow(x1: float, y1: float, x2: float, y2: float, *, stroke: str = _SOFT) -> str:
    """An arrow."""
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{stroke}" '
        f'stroke-width="1.5" marker-end="url(#tip)"/>'
    )


def drawing(width: int, height: int, title: str, parts: list[str]) -> str:
    """A whole SVG file."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'font-family="{escape(_FONT)}" role="img">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" fill="{_SOFT}"/>'
            "</marker></defs>",
            f'<rect width="{width}" height="{height}" rx="12" fill="{_CARD}"/>',
            *parts,
            "</svg>\n",
        ]
    )


def relation(x: float, y: float, side: float, colour: str, drift: float) -> str:
    """A causal attention distribution as a heat map: row i is a softmax over the columns up to i."""
    tokens = 7
    cell = side / tokens
    cells = []
    for row in range(tokens):
        scores = [1.6 * math.sin(1.9 * row * (c + 1) + drift * (row - c)) for c in range(row + 1)]
        total = sum(math.exp(score) for score in scores)
        for column, score in enumerate(scores):
            share = 0.12 + 0.88 * math.exp(score) / total
            cells.append(
                f'<rect x="{x + column * cell:.1f}" y="{y + row * cell:.1f}" width="{cell - 1:.1f}" '
                f'height="{cell - 1:.1f}" fill="{colour}" fill-opacity="{share:.2f}"/>'
            )
    return "".join(cells)


def method() -> str:
    """Teacher and student on the same text; in every layer a KL between their relations."""
    left, right, middle, width = 30, 490, 380, 240
    parts = [
        text(left + width / 2, 36, "Teacher", size=19, fill=_TEACHER),
        text(left + width / 2, 57, "native RoPE, frozen", fill=_SOFT),
        text(right + width / 2, 36, "Student", size=19, fill=_STUDENT),
        text(right + width / 2, 57, "stretched RoPE, q, k, v trained", fill=_SOFT),
        text(middle, 36, "loss", size=19, fill=_LOSS),
        text(middle, 57, "KL in every layer", fill=_SOFT),
    ]
    for index, (y, name) in enumerate(((76, "layer N"), (196, "layer 2"), (296, "layer 1"))):
        for x, colour, drift in ((left, _TEACHER, 0.0), (right, _STUDENT, 0.55)):
            parts.append(box(x, y, width, 84, stroke=colour))
            inner = x + (width - 84 if x == left else 10)
            parts.append(relation(inner + 4, y + 7, 70, colour, drift + 0.8 * index * (drift > 0)))
            label = x + (72 if x == left else width - 72)
            parts.append(text(label, y + 36, name, size=15))
            parts.append(text(label, y + 56, "q, k, v", fill=_SOFT))
        parts += [
            arrow(left + width + 4, y + 42, middle - 30, y + 42),
            arrow(right - 4, y + 42, middle + 30, y + 42),
            f'<circle cx="{middle}" cy="{y + 42}" r="25" fill="{_CARD}" stroke="{_LOSS}" '
            'stroke-width="2"/>',
            text(middle, y + 47, "KL", size=15, fill=_LOSS),
        ]
    for x in (left + width / 2, right + width / 2):
        parts += [
            text(x, 184, "⋮", fill=_SOFT),
            arrow(x, 293, x, 282),
            arrow(x, 408, x, 383),
        ]
    parts += [
        box(left, 410, right + width - left, 40),
        text(
            middle, 435, "the same text, no longer than the window that the teacher was trained on"
        ),
    ]
    return drawing(760, 468, "One model as teacher and as student", parts)


def scalings() -> str:
    """How much linear scaling and YaRN slow each rotary pair of a model stretched eightfold."""
    base, dimension, native, factor = 10_000.0, 64, 8192, 8.0
    pairs = dimension // 2
    native_frequencies = [base ** (-2 * i / dimension) for i in range(pairs)]
    turns = [native * f / (2 * math.pi) for f in native_frequencies]

    def yarn(low: float, high: float) -> list[float]:
        """Frequencies between unchanged (many turns) and divided by the factor (few turns)."""

        def place(count: float) -> float:
            return dimension * math.log(native / (count * 2 * math.pi)) / (2 * math.log(base))

        first, last = math.floor(place(high)), math.ceil(place(low))
        kept = [1 - min(1.0, max(0.0, (i - first) / (last - first))) for i in range(pairs)]
        return [f * (k + (1 - k) / factor) for f, k in zip(native_frequencies, kept, strict=True)]

    curves = {
        "linear": ([f / factor for f in native_frequencies], _LOSS),
        "YaRN": (yarn(1, 32), _STUDENT),
        "YaRN with beta_fast: 4": (yarn(1, 4), _TEACHER),
    }
    x0, y0, width, height = 100, 40, 560, 250

    def point(index: int, divided: float) -> str:
        x = x0 + width * index / (pairs - 1)
        return f"{x:.1f},{y0 + height * (math.log2(divided) / math.log2(factor)):.1f}"

    parts = [box(x0, y0, width, height)]
    for divided in (1, 2, 4, 8):
        y = y0 + height * math.log2(divided) / math.log2(factor)
        parts.append(f'<line x1="{x0}" x2="{x0 + width}" y1="{y:g}" y2="{y:g}" stroke="{_LINE}"/>')
        label = "unchanged" if divided == 1 else f"÷ {divided}"
        parts.append(text(x0 - 8, y + 5, label, size=13, fill=_SOFT, anchor="end"))
    for count in (1000, 100, 32, 4, 1):
        index = min(range(pairs), key=lambda i: abs(math.log(turns[i] / count)))
        x = x0 + width * index / (pairs - 1)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y0}" y2="{y0 + height}" stroke="{_LINE}" '
            'stroke-dasharray="3 4"/>'
        )
        parts.append(text(x, y0 + height + 20, f"{count:,}", size=13, fill=_SOFT))
    for row, (name, (frequencies, colour)) in enumerate(curves.items()):
        line = " ".join(
            point(i, f / g)
            for i, (f, g) in enumerate(zip(native_frequencies, frequencies, strict=True))
        )
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
        )
        y = 132 + 24 * row
        parts.append(
            f'<line x1="120" x2="144" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>'
        )
        parts.append(text(152, y + 5, name, anchor="start"))
    parts += [
        text(x0 + width / 2, 336, "rotary pairs, by how often they turn in the native window"),
        text(x0 + width / 2, 24, "what stretching by 8 does to the frequency of each rotary pair"),
    ]
    return drawing(700, 352, "Linear scaling and YaRN, pair by pair", parts)


def restore() -> str:
    """The steps of `linearard restore`."""
    steps = [
        ("decide", "scaling, windows,", "what is trained"),
        ("plan", "memory and time", "before loading"),
        ("align", "each layer alone,", "rates tried first"),
        ("restore", "short and long", "batches in turn"),
        ("measure", "original, stretched,", "restored"),
        ("export", "written, read back,", "compared"),
    ]
    parts, width, gap = [], 124, 16
    for index, (name, first, second) in enumerate(steps):
        x = 20 + index * (width + gap)
        colour = _STUDENT if name in ("align", "restore") else _TEACHER
        parts.append(box(x, 20, width, 92, stroke=colour))
        parts.append(text(x + width / 2, 50, name, size=17, fill=colour))
        parts.append(text(x + width / 2, 76, first, size=12, fill=_SOFT))
        parts.append(text(x + width / 2, 94, second, size=12, fill=_SOFT))
        if index:
            parts.append(arrow(x - gap + 1, 66, x - 1, 66))
    return drawing(20 + len(steps) * (width + gap) + 4, 132, "What restore does", parts)


PICTURES: dict[str, Callable[[], str]] = {
    "method": method,
    "scalings": scalings,
    "restore": restore,
}


def main() -> int:
    """Write the pictures, or compare them with what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    FOLDER.mkdir(exist_ok=True)
    stale = 0
    for name, draw in PICTURES.items():
        path = FOLDER / f"{name}.svg"
        if path.is_file() and path.read_text() == draw():
            continue
        stale += 1
        if check:
            print(f"{path.name} is not what is drawn: run python -m tools.pictures")
        else:
            path.write_text(draw())
            print(f"wrote {path.name}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
