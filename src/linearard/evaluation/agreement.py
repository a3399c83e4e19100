"""How closely a view follows the original model, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from linearard.evaluation.batching import Track, batches
from linearard.evaluation.positions import mean_by_position
from linearard.evaluation.statistics import bootstrap_interval, mean
from linearard.model import ChunkedCausalLM, Views


@torch.no_grad()
def window_agreement(
    lm: ChunkedCausalLM,
    views: Views,
    names: Sequence[str],
    windows: Tensor,
    *,
    batch_size: int,
    seed: int,
    track: Track = iter,
) -> dict[str, dict[str, Any]]:
    """KL(original || view) in nats per token, and the share of tokens with one top-1 token.

    The hidden states of the original and of each view are kept for one batch of windows; logits
    are formed in chunks, those of the original once for all views. The views share the LM head
    (`ChunkedCausalLM.check` makes sure).

    Args:
        lm: the model.
        views: the first one is the original.
        names: views to compare with it.
        windows: int64 [windows, tokens].
        batch_size: most windows in one forward.
        seed: of the bootstrap over windows.
        track: wraps the batches to show progress.

    Returns:
        Of each name: `kl`, `kl_ci95`, `top1`, `top1_ci95`, `windows`, `tokens`, the per-window means
        `window_kl` and `window_top1`, and `by_position`: a list of `{"start", "end", "kl"}`, the mean
        KL after a token at start <= position < end.
    """
    count, length = windows.shape
    original = next(iter(views.values()))
    kl: dict[str, list[float]] = {name: [] for name in names}
    top1: dict[str, list[float]] = {name: [] for name in names}
    at = {name: torch.zeros(length, dtype=torch.float64) for name in names}
    for batch in track(batches(count, length, batch_size)):
        with original():
            reference = lm.hidden(windows[batch]).flatten(0, 1)
        hidden = {}
        for name in names:
            with views[name]():
                hidden[name] = lm.hidden(windows[batch]).flatten(0, 1)
        with original():
            per_token = _compare(lm, reference, hidden)
        for name, (divergence, same) in per_token.items():
            kl[name] += divergence.view(-1, length).mean(1).tolist()
            at[name] += divergence.view(-1, length).sum(0)
            top1[name] += same.view(-1, length).mean(1).tolist()
    return {
        name: {
            "kl": mean(kl[name]),
            "kl_ci95": bootstrap_interval(kl[name], seed),
            "top1": mean(top1[name]),
            "top1_ci95": bootstrap_interval(top1[name], seed),
            "windows": count,
            "tokens": count * length,
            "window_kl": kl[name],
            "window_top1": top1[name],
            "by_position": mean_by_position("kl", at[name] / count, 0),
        }
        for name in names
    }


def _compare(
    lm: ChunkedCausalLM, reference: Tensor, hidden: dict[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Float64 [rows] on the CPU for each view: the KL and whether the top-1 token is the same."""
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in hidden}
    for rows in lm.chunks(len(reference)):
        expected = lm.logits(reference[rows]).log_softmax(-1)
        probability, top = expected.exp(), expected.argmax(-1)
        for name, states in hidden.items():
            got = lm.logits(states[rows]).log_softmax(-1)
            same = got.argmax(-1) == top
            divergence = got.neg_().add_(expected).mul_(probability).sum(-1)
            parts[name].append((divergence.cpu().double(), same.cpu().double()))
    return {
        name: (torch.cat([kl for kl, _ in chunks]), torch.cat([same for _, same in chunks]))
        for name, chunks in parts.items()
    }
