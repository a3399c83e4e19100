"""Windows cut from held-out documents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from linearard.data import Documents
from linearard.errors import DataError


def cut_windows(documents: Sequence[Tensor], window: int, tokens: int) -> Tensor:
    """Non-overlapping windows of whole tokens; none crosses two documents.

    Each begins as a text does, with what the tokenizer puts before one, as training windows do: a model that
    was trained so reads others at several times its perplexity.

    Documents share the budget as evenly as their lengths allow, and the windows of a document are
    spread evenly over it: no seed, and different window sizes read from the same regions.

    Args:
        documents: int64 [tokens of the document] each, as `token_documents` gives them; of a plain
            sequence, nothing stands before a text.
        window: tokens per window, its beginning included.
        tokens: budget; `max(1, tokens // window)` windows are cut, or as many as there are.

    Returns:
        int64 [windows, window].

    Raises:
        DataError: no document is long enough.
    """
    begin = documents.beginning if isinstance(documents, Documents) else []
    texts = documents.texts if begin else documents
    room = max(window - len(begin), 0)
    available = [room and len(text) // room for text in texts]
    if not any(available):
        raise DataError(
            expected=f"a held-out document of at least {max(room, 1)} tokens"
            + (f", with {len(begin)} before it" if begin else ""),
            got=f"{len(texts)} documents, the longest of {max(map(len, texts), default=0)} tokens",
            fix="Evaluate smaller windows or give longer documents.",
        )
    taken = _share(available, max(1, tokens // window))
    cut = []
    for text, count, quota in zip(texts, available, taken, strict=True):
        for index in range(quota):
            start = (2 * index + 1) * count // (2 * quota) * room
            cut.append(text[start : start + room])
    windows = torch.stack(cut)
    return torch.cat([windows.new_tensor(begin).expand(len(windows), -1), windows], 1)


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
