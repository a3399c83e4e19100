"""What pages say of a run in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def stretch_of(stretch: Mapping[str, Any]) -> str:
    """From which window to which, and how; nothing where a result does not say it."""
    if not stretch:
        return ""
    scaling = stretch["scaling"]
    factor = scaling.get("factor")
    by = f", {scaling['rope_type']}" + (f" × {factor:g}" if factor else "")
    return f"{stretch['native_window']:,} → {stretch['target_window']:,} tokens{by}"


def trained(stages: Mapping[str, Mapping[str, float]]) -> str:
    """What each stage read and how long it took, as a sentence."""
    parts = [
        f"{name}: {stage['tokens']:,} tokens in {stage['seconds']:,.0f} s"
        for name, stage in stages.items()
    ]
    return "; ".join(parts) + "." if parts else ""
