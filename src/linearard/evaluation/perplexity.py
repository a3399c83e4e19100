"""Perplexity of held-out documents by window size."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from linearard.evaluation.batching import Track, batches
from linearard.evaluation.positions import mean_by_position
from linearard.evaluation.statistics import bootstrap_interval, mean, perplexity
from linearard.model import ChunkedCausalLM


@torch.no_grad()
def window_perplexity(
    lm: ChunkedCausalLM, windows: Tensor, *, batch_size: int, seed: int, track: Track = iter
) -> dict[str, Any]:
    """Perplexity of the model, as it is now, on windows.

    The first token of a window is read and not predicted. The negative log-likelihood comes from
    float32 logits and is summed in float64.

    Args:
        lm: the model, in the view to measure.
        windows: int64 [windows, tokens].
        batch_size: most windows in one forward.
        seed: of the bootstrap over windows.
        track: wraps the batches to show progress.

    Returns:
        `ppl`, `ppl_ci95` ([low, high] or None), `nll_sum` (nats), `tokens` (predicted),
        `windows`, `window_nll` (mean nats of each window) and `by_position`: a list of
        `{"start", "end", "nll"}`, the mean nats at positions start <= position < end.
    """
    count, length = windows.shape
    per_window: list[Tensor] = []
    per_position = torch.zeros(length - 1, dtype=torch.float64)
    for batch in track(batches(count, length, batch_size)):
        nll = _token_nll(lm, windows[batch])  # [batch, length - 1]
        per_window.append(nll.sum(1))
        per_position += nll.sum(0)
    sums = torch.cat(per_window)
    window_nll = (sums / (length - 1)).tolist()
    interval = [perplexity(end) for end in bootstrap_interval(window_nll, seed) or ()]
    return {
        "ppl": perplexity(mean(window_nll)),
        "ppl_ci95": interval if interval and math.isfinite(interval[1]) else None,
        "nll_sum": sums.sum().item(),
        "tokens": count * (length - 1),
        "windows": count,
        "window_nll": window_nll,
        "by_position": mean_by_position("nll", per_position / count, 1),
    }


def _token_nll(lm: ChunkedCausalLM, input_ids: Tensor) -> Tensor:
    """Float64 [batch, tokens - 1] on the CPU: -log p of each token but the first."""
    hidden = lm.hidden(input_ids)[:, :-1].flatten(0, 1)
    targets = input_ids[:, 1:].flatten().to(hidden.device)
    nll = [
        torch.nn.functional.cross_entropy(lm.logits(hidden[rows]), targets[rows], reduction="none")
        for rows in lm.chunks(len(targets))
    ]
    return torch.cat(nll).cpu().double().view(len(input_ids), -1)
