"""Which RoPE scaling, by rule."""

from __future__ import annotations

from typing import Any

from linearard.restore.choice import Choice
from linearard.restore.facts import Facts
from linearard.rope.scaling import native_parameters

#: The factor is larger than target over native window: at the end of their native window models miss what
#: stands in its opening, and with a larger factor the end of the target window lies where they still look.
_HEADROOM = 1.25
_BETA_FAST = 4.0


def choose_scaling(facts: Facts, family: str, native_asked: bool) -> tuple[dict[str, Any], Choice]:
    """The section `rope` of a recipe.

    Args:
        facts: of the model.
        family: `yarn` or `linear`.
        native_asked: whether the user named the native window.
    """
    kind = native_parameters(facts.config).get("rope_type", "default")
    original: dict[str, Any] = (
        {"original_max_position_embeddings": facts.native} if native_asked else {}
    )
    if kind != "default":  # the factor is of the window that the model has with its own scaling
        original["counted_from"] = "model"
    if family == "linear":
        rope = {"rope_type": "linear", "factor": facts.factor, **original}
        reason = "asked for; YaRN stays much nearer to the original"
        return rope, Choice("RoPE scaling", f"linear x {facts.factor:g}", reason)
    factor = round(_HEADROOM * facts.factor, 4)
    rope = {
        "rope_type": "yarn",
        "factor": factor,
        "attention_factor": 1.0,
        "beta_fast": _BETA_FAST,
        **original,
    }
    value = f"YaRN x {factor:g}, ramp from 1 to {_BETA_FAST:g} turns, attention factor 1"
    reason = (
        f"pairs that turn more than {_BETA_FAST:g} times in {facts.native:,} tokens stay as they are; "
        f"a quarter above x {facts.factor:g}, because the end of a native window is read worst"
    )
    if kind != "default":
        reason += f"; counted from the model as it is, with its own {kind} scaling"
    return rope, Choice("RoPE scaling", value, reason)
