"""The tables of docs/reference/models.md: which decoder classes are restored and exported."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.figures import RESULTS

ZOO = RESULTS / "cpu" / "zoo.json"
_SCALINGS = ("linear", "yarn", "llama3", "longrope", "table")
_TABLES = ("count", "restored", "partly", "refused", "told", "left-out")
#: What a class is by the verdicts of transformers 4 on its exports.
_READ = {
    "same": "read as the model that was trained",
    "told": "wrong or unreadable there, which the export says",
    "same, told": "read rightly or told, by scaling",
    "absent": "the class is not there",
}
_Trials = dict[str, dict[str, Any]]


def models_tables(path: Path = ZOO) -> dict[str, str]:
    """Tables by marker name, in Markdown; each says so where nothing was run yet."""
    if not path.exists():
        return dict.fromkeys((f"models-{name}" for name in _TABLES), "Not run yet.")
    result = read_zoo(path)
    tried = {kind: e["trials"] for kind, e in sorted(result["classes"].items()) if e["trials"]}
    refused = {kind: trials for kind, trials in tried.items() if _verdicts(trials) == {"refused"}}
    restored = {kind: trials for kind, trials in tried.items() if _verdicts(trials) == {"same"}}
    partly = {k: t for k, t in tried.items() if k not in refused and k not in restored}
    older = f"transformers {result.get('older', '4')}"
    read = _grouped((kind, _older(trials)) for kind, trials in restored.items())
    rows = [[_READ.get(verdict, verdict or "not read"), *row] for verdict, *row in read]
    said = _grouped((kind, words) for kind, trials in refused.items() for words in _said(trials))
    told = _grouped(
        (kind, words) for kind, trials in tried.items() for words in _told(kind, trials)
    )
    left = _grouped(sorted(result["left_out"].items()))
    not_made = {kind: e["not_made"] for kind, e in result["classes"].items() if "not_made" in e}
    left += _grouped(not_made.items())
    tables = {
        "count": _count(result),
        "restored": _markdown([f"by {older}", "classes", "model types"], rows),
        "partly": _markdown(
            ["model type", *_SCALINGS, older, "why"], [_row(k, t) for k, t in partly.items()]
        ),
        "refused": _markdown(["what is said", "classes", "model types"], said),
        "told": _markdown(["what the export says", "classes", "model types"], told),
        "left-out": _markdown(["why", "classes", "model types"], left),
    }
    return {f"models-{name}": table for name, table in tables.items()}


def read_zoo(path: Path) -> dict[str, Any]:
    """The verdicts of `tests/zoo/run.py`, each with its words, which the file holds once."""
    result = json.loads(path.read_text())
    words = result.pop("words", [])
    for entry in result["classes"].values():
        for trial in entry.get("trials", {}).values():
            for name in ("words", "older_words"):
                if isinstance(trial.get(name), int):
                    trial[name] = words[trial[name]]
    return result


def _markdown(headers: list[str], rows: list[list[Any]]) -> str:
    return tabulate(rows, headers, tablefmt="github") if rows else "None."


def _grouped(pairs: Iterable[tuple[str, str]]) -> list[list[Any]]:
    """Second members with how many first ones each has and which, the most frequent first."""
    found: dict[str, list[str]] = defaultdict(list)
    for kind, words in pairs:
        if kind not in found[words]:
            found[words].append(kind)
    rows = sorted(found.items(), key=lambda row: (-len(row[1]), row[0]))
    return [[words, len(kinds), ", ".join(kinds)] for words, kinds in rows]


def _verdicts(trials: _Trials, scaling: str | None = None) -> set[str]:
    return {
        trial["verdict"]
        for name, trial in trials.items()
        if scaling is None or name.split()[0] == scaling
    }


def _older(trials: _Trials) -> str:
    """What transformers 4 makes of the exports, the worst first."""
    order = ("wrong", "same", "told", "absent")
    found = {trial["older"] for trial in trials.values() if trial.get("older")}
    return ", ".join(sorted(found, key=order.index))


def _row(kind: str, trials: _Trials) -> list[str]:
    order = ("wrong", "failed", "refused", "same")
    cells = [
        ", ".join(sorted(_verdicts(trials, scaling), key=order.index)) or "not tried"
        for scaling in _SCALINGS
    ]
    return [kind, *cells, _older(trials), "; ".join(sorted(_said(trials)))]


def _said(trials: _Trials) -> set[str]:
    """Refusals and faults, without what differs from class to class."""
    words = (trial["words"] for trial in trials.values() if trial.get("words"))
    return {text.split(", got ")[0].split(" (")[0].strip().rstrip(".") for text in words}


def _told(kind: str, trials: _Trials) -> set[str]:
    """What an export says of transformers 4, in words for any class."""
    notes = (t["older_words"] for t in trials.values() if t.get("older") == "told")
    sentences = {s for note in notes for s in re.findall(r"transformers 4 [^:]*", note)}
    return {re.sub(rf" of {kind}\b", "", sentence).replace(kind, "it") for sentence in sentences}


def _count(result: dict[str, Any]) -> str:
    named = [(n, t) for e in result["classes"].values() for n, t in e["trials"].items()]
    verdicts = [trial["verdict"] for _, trial in named]
    older = [trial.get("older") for _, trial in named]
    worst = max((t.get("error") or 0 for n, t in named if n.endswith("float32")), default=0)
    twice = sum("first_error" in trial for _, trial in named)
    parts = [f"{len(result['classes'])} classes, {len(named):,} trials"]
    parts += [f"{verdicts.count(v):,} {v}" for v in ("same", "refused", "wrong", "failed")]
    parts.append(
        f"read by transformers {result.get('older', '4')}: {older.count('same'):,} same, "
        f"{older.count('told'):,} told, {older.count('wrong'):,} wrong"
    )
    parts.append(f"largest error in float32 {worst:.1g}; {twice} tried twice")
    return f"transformers {result['transformers']}: " + "; ".join(parts) + "."
