"""What is trained, by which optimizer, and the learning rate to start the trials from."""

from __future__ import annotations

import math
from typing import Any

from linearard.restore.choice import Choice
from linearard.restore.facts import Facts

_DIRECT_UP_TO = 1_000_000_000  # parameters
_RANK = 256
#: Learning rates times the square root of the width. Weights of a layer of n inputs are about 1/sqrt(n),
#: so that a step changes them by the same share at every width. Restoration by Muon; alignment by AdamW.
_MUON_RATE, _ALIGNMENT_RATE = 0.0144, 0.048
#: LoRA's product of factors has that width in it already, by the size its first factor starts with.
_LORA_RATE, _LORA_ALIGNMENT_RATE = 5e-4, 1e-3


def choose_adapter(facts: Facts, asked: str, scaling: str) -> tuple[dict[str, Any], Choice]:
    """The section `adapter` of a recipe."""
    direct = asked == "direct" or (asked == "auto" and facts.parameters <= _DIRECT_UP_TO)
    size = f"{facts.parameters / 1e9:.2f} B parameters"
    if direct:
        adapter: dict[str, Any] = {"kind": "direct"}
        if scaling == "linear":
            adapter["rotary_pairs"] = "fast"
        why = "asked for" if asked == "direct" else f"{size}: their float32 masters fit easily"
        return adapter, Choice("trained", "the matrices and biases of q, k, v themselves", why)
    rank = min(_RANK, facts.config.hidden_size // 2)
    adapter = {"kind": "lora", "r": rank, "alpha": 2.0 * rank, "dropout": 0.0}
    why = "asked for" if asked == "lora" else f"{size}: a tenth of the optimizer's memory"
    return adapter, Choice("trained", f"LoRA of rank {rank} on q, k, v", why)


def choose_optimizer(facts: Facts, adapter: dict[str, Any]) -> tuple[dict[str, Any], Choice]:
    """Optimizer and rate of the restoration stage."""
    hidden = facts.config.hidden_size
    if facts.on_cpu:
        rate = alignment_rate(facts, adapter)
        reason = "of the stage that trains each layer alone, which is all that a CPU trains"
        return {"learning_rate": rate}, Choice("optimizer", f"AdamW, rate {rate:g}", reason)
    if adapter["kind"] == "lora":
        reason = "from the size of LoRA's first factor; trials before the stage correct it"
        return {"learning_rate": _LORA_RATE}, Choice(
            "optimizer", f"AdamW, rate {_LORA_RATE:g}", reason
        )
    rate = _rounded(_MUON_RATE / math.sqrt(hidden))
    reason = f"by the width of {hidden:,}; trials before the stage correct it"
    return {"muon": True, "learning_rate": rate}, Choice(
        "optimizer", f"Muon for matrices, AdamW for vectors, rate {rate:g}", reason
    )


def alignment_rate(facts: Facts, adapter: dict[str, Any]) -> float:
    """Learning rate of the alignment stage (AdamW, each layer alone)."""
    if adapter["kind"] == "lora":
        return _LORA_ALIGNMENT_RATE
    return _rounded(_ALIGNMENT_RATE / math.sqrt(facts.config.hidden_size))


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")
