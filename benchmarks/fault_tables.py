"""Figures and tables of docs/FAULTS.md: long runs, and runs that are to end in the same bits."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

_MEASURES = {
    "rss": "process, MiB an hour",
    "allocated": "GPU, allocated",
    "reserved": "GPU, reserved",
    "folder": "output folder",
}
_MODES = {"any_order": "different results", "deterministic": "with `deterministic: true`"}


def soak_figures(where: str, result: dict[str, Any]) -> dict[str, float]:
    """What grew in a long run, in MiB an hour, and how fast it went."""
    key = f"soak.{where}"
    if "flat" not in result:
        return {}
    figures = {f"{key}.minutes": result["seconds"] / 60, f"{key}.steps": result["steps"]}
    figures[f"{key}.flat"] = int(result["flat"])
    figures |= {f"{key}.{part}_speed": x for part, x in result["steps_per_second"].items()}
    for name, measure in result["measures"].items():
        figures[f"{key}.{name}.mib_an_hour"] = measure["mib_an_hour"]
        figures[f"{key}.{name}.mib"] = measure["last_mib"]
    return figures


def same_bits_figures(where: str, result: dict[str, Any]) -> dict[str, float]:
    """How many different results the same seed gave, of trainings and of operations."""
    figures: dict[str, float] = {f"same_bits.{where}.runs": result["runs"]}
    for name, found in result["training"].items():
        what, mode = name.rsplit(", ", 1)
        figures[f"same_bits.{where}.training: {what}.{mode.replace(' ', '_')}"] = found["distinct"]
    for name, found in result.get("operations", {}).items():
        for mode, distinct in found.items():
            if not isinstance(distinct, str):
                figures[f"same_bits.{where}.{name}.{mode}"] = distinct
    return figures


def fault_tables(figures: dict[str, float]) -> dict[str, str]:
    """The tables by marker name, in Markdown."""
    return {"soak": _soak_table(figures), "same-bits": _same_bits_table(figures)}


def _same_bits_table(figures: dict[str, float]) -> str:
    """Different results by mode: of trainings first, then of operations, of the GPU that was looked at."""
    start = "same_bits.h200."
    found = [key.removeprefix(start) for key in figures if key.startswith(start)]
    names = sorted({key.rpartition(".")[0] for key in found if "." in key})
    names.sort(key=lambda name: not name.startswith("training"))
    rows = [
        [name, *(_count(figures.get(f"{start}{name}.{mode}")) for mode in _MODES)] for name in names
    ]
    return _markdown(["H200", *_MODES.values()], rows) if rows else "Not measured yet."


def _count(value: float | None) -> str:
    return "does not run" if value is None else f"{value:.0f}"


def _soak_table(figures: dict[str, float]) -> str:
    places = [k.split(".")[1] for k in figures if k.startswith("soak.") and k.endswith(".flat")]
    if not places:
        return "Not measured yet."
    rows = []
    for where in places:
        key = f"soak.{where}"
        grown = [figures.get(f"{key}.{name}.mib_an_hour") for name in _MEASURES]
        rows.append(
            [
                where.upper(),
                f"{figures[f'{key}.minutes']:.0f}",
                f"{figures[f'{key}.steps']:,.0f}",
                *("" if value is None else f"{value:+.1f}" for value in grown),
                "flat" if figures[f"{key}.flat"] else "grows",
            ]
        )
    headers = ["trained on", "minutes", "steps", *_MEASURES.values(), "verdict"]
    return _markdown(headers, rows)


def _markdown(headers: list[str], rows: list[list[str]]) -> str:
    right = ["left"] + ["right"] * (len(headers) - 1)
    return tabulate(rows, headers, tablefmt="github", colalign=right, disable_numparse=True)
