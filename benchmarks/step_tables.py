"""Tables of training steps: how long they take, and how far fast training is from plain training."""

from __future__ import annotations

from benchmarks.cells import cell, markdown

_OBJECTIVES = {
    "paper": "q, k, v (the paper's)",
    "all": "q, k, v, qk",
    "all_logit": "q, k, v, qk, logit KL",
    "logit": "logit KL alone",
    "lm": "next token alone",
    "teacher_inputs_qk": "teacher inputs, qk",
    "teacher_inputs_qk_v": "teacher inputs, qk and v",
}
_SHAPES = {
    "SmolLM2-135M, ms": "step.smollm2_135m.h200.r256",
    "LLaMA2-7B, ms": "step.llama2_7b.h200.r1024",
}
_DISTANCES = {
    "losses, mean": "mean",
    "losses, furthest step": "max",
    "final weights, share of the way moved": "weights",
}


def step_tables(figures: dict[str, float]) -> dict[str, str]:
    """The tables of this file by marker name."""
    return {"steps": _steps(figures), "same-training": _same_training(figures)}


def _steps(figures: dict[str, float]) -> str:
    rows = []
    for name, title in _OBJECTIVES.items():
        keys = [f"{shape}.{name}" for shape in _SHAPES.values()]
        cells = [cell(figures.get(f"{key}.ms"), ".0f") for key in keys]
        ratios = [cell(figures.get(f"{key}.ratio_teacher_graph"), ".1f") for key in keys]
        if any(cells):
            rows.append([title, *(c for pair in zip(cells, ratios, strict=True) for c in pair)])
    headers = [word for shape in _SHAPES for word in (shape, "over the teacher's forward")]
    return markdown(["H200, objective", *headers], rows) if rows else "Not measured yet."


def _same_training(figures: dict[str, float]) -> str:
    start = "same_training.smollm2_135m_instruct"
    places = [place for place in ("h200", "cpu") if f"{start}.{place}.gradient_fast" in figures]
    rows = []
    for title, part in _DISTANCES.items():
        cells = []
        for place in places:
            for kind in ("float32_fast", "float32_plain", "noise"):
                cells.append(cell(figures.get(f"{start}.{place}.{kind}_{part}"), ".3f"))
        rows.append([title, *cells])
    cells = []
    for place in places:
        for kind in ("fast", "plain"):
            cells.append(cell(figures.get(f"{start}.{place}.gradient_{kind}"), ".3f"))
        cells.append("")
    rows.append(["gradients at one set of weights, median", *cells])
    headers = [
        f"{place.upper()}, {kind}" for place in places for kind in ("fast", "plain", "two plain")
    ]
    return markdown(["distance from float32", *headers], rows) if places else "Not measured yet."
