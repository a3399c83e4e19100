"""Tables of runs of `linearard restore`: how near, how far they read and find, and what they cost."""

from __future__ import annotations

import re

from benchmarks.cells import cell, cells_of, markdown

#: Views of a run, and what stands before their figures.
_VIEWS = {"original": "original.", "stretched": "stretched.", "restored": ""}
_NAMES = {
    "smollm2_135m": "SmolLM2-135M",
    "qwen2_5_coder_0_5b": "Qwen2.5-Coder-0.5B",
    "qwen2_5_coder_1_5b": "Qwen2.5-Coder-1.5B",
}
_NEAR = {
    "KL to original, 2k (nats)": ("kl", ".4f"),
    "top-1 agreement": ("top1", ".3f"),
    "short tasks kept": ("tasks_kept", ".3f"),
    "same answers": ("same_answers", ".3f"),
}
_COST = {
    "tokens": ("tokens", 1.0, ",.0f"),
    "command to verdict, min": ("seconds", 60.0, ".1f"),
    "peak, GiB": ("peak_gib", 1.0, ".1f"),
    "planned, GiB": ("planned_gib", 1.0, ".1f"),
}


def restore_tables(figures: dict[str, float]) -> dict[str, str]:
    """Those of nearness, pass keys, retrieval and cost, of figures `restore.MODEL.[VIEW.]NAME`."""
    runs = sorted({key.split(".")[1] for key in figures if key.startswith("restore.")})
    return {
        "restore-near": _near(figures, runs),
        "restore-keys": _found(figures, runs, "passkey"),
        "restore-retrieval": _found(figures, runs, "retrieval"),
        "restore-cost": _cost(figures, runs),
    }


def _title(run: str) -> str:
    """`smollm2_135m_x8` in words."""
    model, _, factor = run.rpartition("_x")
    return f"{_NAMES.get(model, model.replace('_', ' '))} x {factor}"


def _lengths(figures: dict[str, float], start: str, kind: str) -> list[int]:
    found = (re.fullmatch(rf"{re.escape(start)}{kind}_(\d+)", key) for key in figures)
    return sorted(int(match[1]) for match in found if match)


def _near(figures: dict[str, float], runs: list[str]) -> str:
    rows = []
    for run in runs:
        for view, prefix in _VIEWS.items():
            start = f"restore.{run}.{prefix}"
            cells = cells_of(figures, start, _NEAR)
            read = _lengths(figures, start, "ppl")
            cells.append(cell(figures.get(f"{start}ppl_{max(read)}") if read else None, ".1f"))
            rows.append([f"{_title(run)}: {view}", *cells])
    return markdown(["model, view", *_NEAR, "perplexity at the target"], rows)


def _found(figures: dict[str, float], runs: list[str], kind: str) -> str:
    """Shares of prompts answered, by length: 2,048 tokens, the native window, and multiples of it."""
    columns: dict[int, dict[str, int]] = {}  # by multiples of the native window; 0: 2,048 tokens
    for run in runs:
        native = max(_lengths(figures, f"restore.{run}.", "passkey")) // int(
            run.rpartition("_x")[2]
        )
        for length in _lengths(figures, f"restore.{run}.", kind):
            columns.setdefault(length // native, {})[run] = length
    rows = []
    for run in runs:
        for view, prefix in _VIEWS.items():
            keys = [f"restore.{run}.{prefix}{kind}_{columns[n].get(run)}" for n in sorted(columns)]
            rows.append([f"{_title(run)}: {view}", *(cell(figures.get(k), ".2f") for k in keys)])
    titles = {0: "2,048", 1: "native"}
    headers = [titles.get(times, f"{times} x native") for times in sorted(columns)]
    return markdown(["model, view", *headers], rows)


def _cost(figures: dict[str, float], runs: list[str]) -> str:
    rows = []
    for run in runs:
        found = [
            (figures.get(f"restore.{run}.{key}"), by, form) for key, by, form in _COST.values()
        ]
        cells = [cell(None if value is None else value / by, form) for value, by, form in found]
        rows.append([_title(run), *cells])
    return markdown(["model", *_COST], rows)
