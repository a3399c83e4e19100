"""Bytes that the optimizers of `transformers` hold for each trained weight."""

from __future__ import annotations

#: Optimizer states of a weight, by a word in the name: AdamW's are two. Adafactor keeps rows and columns.
_STATES = {
    "ademamix": 3,
    "adafactor": 0,
    "adagrad": 1,
    "adam": 2,
    "lion": 1,
    "muon": 1,
    "rmsprop": 1,
    "sgd": 0,
    "lomo": 0,
}
_FLOAT32 = 4


def optimizer_bytes(name: str) -> tuple[float, float]:
    """Bytes kept between steps, and needed for a moment in a step, for each trained weight.

    Args:
        name: as in `TrainingArguments.optim`, or muon. Of one that is not known, AdamW's are assumed.
    """
    states = next((count for word, count in _STATES.items() if word in name), 2)
    size = 1.0 if "8bit" in name else 0.5 if "4bit" in name else float(_FLOAT32)
    # Where AdamW is not fused, it holds the root of the second moment of all weights at once.
    return states * size, float(_FLOAT32) if name == "adamw_torch" else 0.0
