"""Cells and tables in Markdown."""

from __future__ import annotations

from tabulate import tabulate


def cell(value: float | None, form: str) -> str:
    """A figure, or nothing."""
    return "" if value is None else format(value, form)


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
