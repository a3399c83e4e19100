"""Figures and table of several GPUs against one, from `benchmarks scale`."""

from __future__ import annotations

from typing import Any

from benchmarks.cells import cell, markdown

_ROWS = {
    "one": "paper's stage, one GPU",
    "ddp": "paper's stage, copies (DDP)",
    "fsdp": "paper's stage, shares (FSDP2)",
    "fsdp.32b": "32B shape, shares (FSDP2)",
    "cpt.one": "CPT, 131,072 tokens, one GPU",
    "cpt.shared": "CPT, 131,072 tokens, shared",
}


def scale_figures(where: str, result: dict[str, Any]) -> dict[str, float]:
    """Speed and memory of several GPUs, by their number."""
    figures: dict[str, float] = {}
    for number, found in result.get("runs", {}).items():
        key = f"scale.{where}_{number}"
        cases = {n: case for n, case in found["cases"].items() if "seconds" in case}
        for name, case in cases.items():
            figures[f"{key}.cases.{name}.seconds"] = case["seconds"]["p50"]
            figures[f"{key}.cases.{name}.tokens_per_second"] = case["tokens_per_second"]
            figures[f"{key}.cases.{name}.peak_gib"] = case["peak_gib"]
        for engine in ("ddp", "fsdp"):
            for suffix, kind in (("", "speedup"), (".four", "strong_speedup")):
                several, one = cases.get(f"{engine}{suffix}"), cases.get(f"one{suffix}")
                if several and one:
                    gain = several["tokens_per_second"] / one["tokens_per_second"]
                    figures[f"{key}.llama2_7b.{engine}_{kind}"] = gain
            if engine in cases:
                figures[f"{key}.llama2_7b.{engine}_peak_gib"] = cases[engine]["peak_gib"]
        shared, alone = cases.get("cpt.shared"), cases.get("cpt.one")
        if shared and alone:
            gain = shared["tokens_per_second"] / alone["tokens_per_second"]
            figures[f"{key}.cpt_128k.speedup"] = gain
            if alone["activation_gib"]:
                ratio = shared["activation_gib"] / alone["activation_gib"]
                figures[f"{key}.cpt_128k.activation_ratio"] = ratio
    return figures


def scale_table(figures: dict[str, float]) -> str:
    """What was measured on two H200."""
    start = "scale.h200_x2.cases."
    columns = {"seconds": ".3f", "tokens_per_second": ",.0f", "peak_gib": ".1f"}
    rows = [
        [
            title,
            *(cell(figures.get(f"{start}{name}.{part}"), form) for part, form in columns.items()),
        ]
        for name, title in _ROWS.items()
        if f"{start}{name}.seconds" in figures
    ]
    headers = ["two H200", "step, s", "tokens a second", "GiB a GPU"]
    return markdown(headers, rows) if rows else "Not measured yet."
