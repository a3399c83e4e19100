"""What a report shows beside the measures: the stretch, and what it and the training did inside the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from linearard.distill import attention_maps, relation_profile
from linearard.model import RestorableModel

_WINDOWS = 4
_SHOWN_TOKENS = 384  # of one head's attention


def stretch_of(restorable: RestorableModel) -> dict[str, Any]:
    """The scaling without its lists, and the windows before and after it."""
    rope = restorable.rope
    plain = {k: v for k, v in rope.scaling.items() if isinstance(v, str | int | float)}
    return {
        "scaling": plain,
        "native_window": rope.native_window,
        "target_window": rope.target_window,
    }


def inner_profile(
    restorable: RestorableModel, documents: list[Tensor], window: int
) -> dict[str, Any]:
    """Relation KL by layer and by head, and the attention of the head that stretching changed the most.

    Args:
        restorable: the model; it is left in evaluation mode.
        documents: held-out token ids, int64 `[tokens]` each.
        window: tokens read of each of the first long ones; never more than 2,048 or the native window.

    Returns:
        `relations`: view -> relation -> KL by layer, in nats. `relation_heads`: view -> relation -> layer ->
        KL by head. `attention`: see `attention_maps`. Nothing where no document is long enough.
    """
    window = min(window, restorable.rope.native_window, 2048)
    long_enough = [document for document in documents if len(document) >= window]
    blocks = [document[None, :window] for document in long_enough[:_WINDOWS]]
    if not blocks:
        return {}
    profile = relation_profile(restorable, blocks)
    shown = blocks[0][0, :_SHOWN_TOKENS]
    return {
        "relations": profile.layers,
        "relation_heads": _rounded(profile.heads),
        "attention": _rounded(attention_maps(restorable, shown, *profile.most_changed())),
    }


def _rounded(value: Any) -> Any:
    """Numbers to four digits: they are looked at, and there are thousands of them."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
