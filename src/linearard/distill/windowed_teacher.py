"""What the teacher says of a text longer than its native window."""

from __future__ import annotations

import torch
from torch import Tensor

from linearard.model import ChunkedCausalLM


@torch.no_grad()
def windowed_hidden(language_model: ChunkedCausalLM, input_ids: Tensor, window: int) -> Tensor:
    """Last hidden states `[batch, tokens, hidden]`, read in windows that overlap by half.

    Each position is taken from the window that shows it the most text before it: at least
    `window // 2` tokens, or all there are. So a teacher can speak of any length, as a model that
    remembers only so much.

    Args:
        language_model: the model, in the view of the teacher.
        input_ids: int64 `[batch, tokens]`.
        window: tokens of a window, even, at most the native window.
    """
    tokens, half = input_ids.shape[1], window // 2
    if tokens <= window:
        return language_model.hidden(input_ids)
    hidden, done = None, 0
    for end in [*range(window, tokens, half), tokens]:
        read = language_model.hidden(input_ids[:, end - window : end])
        if hidden is None:
            hidden = read.new_empty(len(read), tokens, read.shape[-1])
        hidden[:, done:end] = read[:, done - end :]
        done = end
    return hidden
