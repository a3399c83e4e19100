"""What a longer window pays: the loss of the same tokens, read with growing context.

Perplexities of windows of different sizes are about different tokens, of which some are easier. Here the
last tokens of long held-out windows stay the same, and only how much is read before them grows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from linearard.data import Documents
from linearard.evaluation.batching import Track, batches
from linearard.evaluation.statistics import bootstrap_interval, mean
from linearard.evaluation.windows import cut_windows
from linearard.model import ChunkedCausalLM
from linearard.model.view_names import ORIGINAL

MOST_SCORED = 2048  # tokens at the end of a window


def context_windows(
    documents: Sequence[Tensor], lengths: Sequence[int], count: int
) -> dict[int, Tensor]:
    """The ends of the same windows, as they are read with each length.

    Args:
        documents: held-out token ids, int64 [tokens] each; long ones.
        lengths: tokens read, those that are scored included.
        count: windows, or as many as the documents have.

    Returns:
        int64 [windows, length] by ascending length; each begins as a text does. None without lengths.

    Raises:
        DataError: no document is as long as the longest.
    """
    if not lengths:
        return {}
    longest = max(lengths)
    windows = cut_windows(documents, longest, count * longest)
    begin = len(documents.beginning) if isinstance(documents, Documents) else 0
    return growing_windows(windows, lengths, begin)


def growing_windows(windows: Tensor, lengths: Sequence[int], begin: int) -> dict[int, Tensor]:
    """The ends of windows, as they are read with each length.

    Args:
        windows: int64 [windows, longest].
        lengths: tokens read, at most the longest.
        begin: tokens that every text begins with, such as a BOS token.

    Returns:
        int64 [windows, length] by ascending length.
    """
    longest = windows.shape[1]
    return {
        length: torch.cat([windows[:, :begin], windows[:, longest - length + begin :]], 1)
        for length in sorted(set(lengths))
    }


def scored_tokens(lengths: Sequence[int]) -> int:
    """How many tokens at the end are scored: half of the shortest reading at most."""
    return min(MOST_SCORED, max(1, min(lengths) // 2))


@torch.no_grad()
def context_losses(
    lm: ChunkedCausalLM,
    windows: Mapping[int, Tensor],
    *,
    native_window: int,
    beyond: bool,
    seed: int,
    batch_size: int,
    track: Track = iter,
) -> dict[str, Any]:
    """Loss of the last tokens after each length, in the view as it is now.

    Args:
        lm: the model.
        windows: as `context_windows` gives them.
        native_window: tokens that the original reads.
        beyond: read more than that; the original cannot.
        seed: of the bootstrap over windows.
        batch_size: most windows in one forward pass.
        track: wraps the batches to show progress.

    Returns:
        `scored` (tokens of each window), `windows`, `native` (the longest length within the native window,
        or None), `by_length` (`nll`, its `nll_ci95`, `window_nll` by length); and where more than the native
        window was read, `gain` and `gain_ci95`: the loss with native context minus the loss with all of it,
        in nats a token, paired by window.
    """
    scored = scored_tokens(list(windows))
    read = {n: rows for n, rows in windows.items() if beyond or n <= native_window}
    by_window: dict[int, list[float]] = {}
    work = [(n, part) for n, rows in read.items() for part in batches(*rows.shape, batch_size)]
    for length, part in track(work):
        by_window.setdefault(length, []).extend(_losses(lm, read[length][part], scored))
    native = max((n for n in windows if n <= native_window), default=None)
    found: dict[str, Any] = {
        "scored": scored,
        "windows": len(next(iter(windows.values()))),
        "native": native,
        "by_length": {
            str(n): {
                "nll": mean(losses),
                "nll_ci95": bootstrap_interval(losses, seed),
                "window_nll": losses,
            }
            for n, losses in by_window.items()
        },
    }
    longest = max(by_window, default=0)
    if native is not None and longest > native:
        found |= _gain("gain", by_window[native], by_window[longest], seed)
    return found


def compare_with_original(views: Mapping[str, Mapping[str, Any]], seed: int) -> None:
    """Give every view with a gain `gain_over_original` and its interval.

    It is the original's loss with native context minus the view's loss with all of it: what one pays who
    goes from the one to the other.

    Args:
        views: results by view, changed in place.
        seed: of the bootstrap over windows.
    """
    by_view = {name: _contexts(part) for name, part in views.items()}
    for text, before in by_view.get(ORIGINAL, {}).items():
        if before["native"] is None:
            continue
        native = before["by_length"][str(before["native"])]["window_nll"]
        for parts in by_view.values():
            if "gain" in (found := parts.get(text, {})):
                longest = max(found["by_length"], key=int)
                after = found["by_length"][longest]["window_nll"]
                found |= _gain("gain_over_original", native, after, seed)


def _contexts(part: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a view has of the held-out documents, under no name, and of texts by name."""
    held_out = {"": part["context"]} if "context" in part else {}
    return held_out | part.get("context_texts", {})


def _gain(name: str, short: list[float], long: list[float], seed: int) -> dict[str, Any]:
    gains = [a - b for a, b in zip(short, long, strict=True)]
    return {name: mean(gains), f"{name}_ci95": bootstrap_interval(gains, seed)}


def _losses(lm: ChunkedCausalLM, input_ids: Tensor, scored: int) -> list[float]:
    """Of each window the mean -log p of its last `scored` tokens."""
    hidden = lm.hidden(input_ids)[:, -scored - 1 : -1].flatten(0, 1)
    targets = input_ids[:, -scored:].flatten().to(hidden.device)
    nll = [
        torch.nn.functional.cross_entropy(lm.logits(hidden[rows]), targets[rows], reduction="none")
        for rows in lm.chunks(len(targets))
    ]
    return torch.cat(nll).cpu().double().view(len(input_ids), -1).mean(1).tolist()
