"""The tables of docs/reference/models.md: which decoder classes are restored and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.figures import RESULTS

ZOO = RESULTS / "cpu" / "zoo.json"
_SCALINGS = ("linear", "yarn", "llama3", "longrope", "table")
_NO_RUN = "not tried"


def models_tables(path: Path = ZOO) -> dict[str, str]:
    """Tables by marker name, in Markdown; each says so where nothing was run yet."""
    if not path.exists():
        return dict.fromkeys(("models", "models-reasons", "models-count"), "Not run yet.")
    result = json.loads(path.read_text())
    reasons: dict[str, int] = {}
    rows = [_row(kind, entry, reasons) for kind, entry in sorted(result["classes"].items())]
    for kind, why in sorted(result["left_out"].items()):
        rows.append([kind, "", *[_NO_RUN] * len(_SCALINGS), "", f"({_number(why, reasons)})"])
    older = f"transformers {result['older']}" if "older" in result else "transformers 4"
    headers = ["model type", "class", *_SCALINGS, older, "why"]
    listed = [[f"({number})", reason] for reason, number in reasons.items()]
    return {
        "models": tabulate(rows, headers, tablefmt="github"),
        "models-reasons": tabulate(listed, ["", "what is said"], tablefmt="github"),
        "models-count": _count(result),
    }


def _row(kind: str, entry: dict[str, Any], reasons: dict[str, int]) -> list[str]:
    why: set[int] = set()
    if "not_made" in entry:
        why.add(_number(f"no tiny model could be made: {entry['not_made']}", reasons))
    cells, older = [], set()
    for scaling in _SCALINGS:
        found = {}
        for name, trial in entry["trials"].items():
            if name.split()[0] == scaling:
                found[name] = trial["verdict"]
                if trial["verdict"] == "same" and trial.get("older"):
                    older.add(trial["older"])
                for words in ("words", "older_words"):
                    if trial.get(words):
                        why.add(_number(_shorter(trial[words]), reasons))
        cells.append(_cell(set(found.values())))
    numbers = ", ".join(f"({number})" for number in sorted(why))
    return [kind, f"`{entry['name']}`", *cells, _cell(older, ""), numbers]


def _cell(verdicts: set[str], empty: str = _NO_RUN) -> str:
    """One verdict, or all where they differ, the worst first."""
    order = ("wrong", "failed", "told", "refused", "same", "absent")
    return ", ".join(sorted(verdicts, key=order.index)) or empty


def _shorter(words: str) -> str:
    """A refusal without what differs from class to class."""
    return words.split(", got ")[0].split(" (")[0].strip().rstrip(".")


def _number(words: str, reasons: dict[str, int]) -> int:
    return reasons.setdefault(words, len(reasons) + 1)


def _count(result: dict[str, Any]) -> str:
    trials = [trial for e in result["classes"].values() for trial in e["trials"].values()]
    verdicts = [trial["verdict"] for trial in trials]
    older = [trial.get("older") for trial in trials]
    parts = [f"{len(result['classes'])} classes, {len(trials)} trials"]
    parts += [
        f"{verdicts.count(v)} {v}" for v in ("same", "refused", "wrong", "failed") if v in verdicts
    ]
    parts.append(
        f"read by transformers 4: {older.count('same')} same, {older.count('told')} told, "
        f"{older.count('wrong')} wrong"
    )
    return f"transformers {result['transformers']}: " + "; ".join(parts) + "."
