"""Cells and tables in Markdown."""

from __future__ import annotations

from tabulate import tabulate


def cell(value: float | None, form: str) -> str:
    """A figure, or nothing."""
    return "" if value is None else format(value, form)


def cells_of(
    figures: dict[str, float], start: str, columns: dict[str, tuple[str, str]]
) -> list[str]:
    """Cells of a row: for each column the figure whose key is `start` and the column's end, formatted."""
    return [cell(figures.get(f"{start}{end}"), form) for end, form in columns.values()]


def markdown(headers: list[str], rows: list[list[str]]) -> str:
    """A table of GitHub's Markdown, its first column to the left and the others to the right."""
    right = ["left"] + ["right"] * (len(headers) - 1)
    return tabulate(rows, headers, tablefmt="github", colalign=right, disable_numparse=True)


def filled(
    columns: dict[str, tuple[str, str]], keys: list[str], figures: dict[str, float]
) -> dict[str, tuple[str, str]]:
    """The columns that one of the keys has a figure for."""
    return {
        title: (part, form)
        for title, (part, form) in columns.items()
        if any(f"{key}.{part}" in figures for key in keys)
    }
