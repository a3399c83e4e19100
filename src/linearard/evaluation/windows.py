"""Windows cut from held-out documents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from linearard.errors import DataError


def cut_windows(documents: Sequence[Tensor], window: int, tokens: int) -> Tensor:
    """Non-overlapping windows of whole tokens; none crosses two documents.

    Documents share the budget as evenly as their lengths allow, and the windows of a document are
    spread evenly over it: no seed, and different window sizes read from the same regions.

    Args:
        documents: int64 [tokens of the document] each.
        window: tokens per window.
        tokens: budget; `max(1, tokens // window)` windows are cut, or as many as there are.

    Returns:
        int64 [windows, window].

    Raises:
        DataError: no document is long enough.
    """
    available = [len(document) // window for document in documents]
    if not any(available):
        raise DataError(
            expected=f"a held-out document of at least {window} tokens",
            got=f"{len(documents)} documents, the longest of "
            f"{max(map(len, documents), default=0)} tokens",
            fix="Evaluate smaller windows or give longer documents.",
        )
    taken = _share(available, max(1, tokens // window))
    cut = []
    for document, count, quota in zip(documents, available, taken, strict=True):
        for index in range(quota):
            start = (2 * index + 1) * count // (2 * quota) * window
            cut.append(document[start : start + window])
    return torch.stack(cut)


def _share(available: list[int], wanted: int) -> list[int]:
    """Give out `wanted` turns round robin, to none more than it has."""
    taken = [0] * len(available)
    left = min(wanted, sum(available))
    while left:
        for index, count in enumerate(available):
            if left and taken[index] < count:
                taken[index] += 1
                left -= 1
    return taken
