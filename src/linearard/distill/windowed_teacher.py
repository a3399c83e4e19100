"""What the teacher says of a text longer than its native window."""

from __future__ import annotations

import torch
from torch import Tensor

from linearard.capture import SharedSequence
from linearard.model import ChunkedCausalLM


@torch.no_grad()
def windowed_hidden(
    language_model: ChunkedCausalLM,
    input_ids: Tensor,
    window: int,
    shared: SharedSequence | None = None,
) -> Tensor:
    """Last hidden states `[batch, tokens, hidden]`, read in windows that overlap by half.

    Each position is taken from the window that shows it the most text before it: at least
    `window // 2` tokens, or all there are. So a teacher can speak of any length, as a model that
    remembers only so much.

    Args:
        language_model: the model, in the view of the teacher.
        input_ids: int64 `[batch, tokens]`.
        window: tokens of a window, even, at most the native window.
        shared: the processes that share the text. Each reads, by itself, the windows that its own tokens are
            taken from, and gets these tokens' hidden states. All read as many, since a model that is divided
            among processes has to run in all of them.
    """
    tokens = input_ids.shape[1]
    own = slice(0, tokens) if shared is None else shared.part(tokens)
    if tokens <= window:
        return language_model.hidden(input_ids)[:, own]
    parts = [own] if shared is None else shared.parts(tokens)
    number = max(len(_windows(tokens, window, part)) for part in parts)
    mine = _windows(tokens, window, own)
    hidden = None
    for begin, end in mine + mine[-1:] * (number - len(mine)):
        read = language_model.hidden(input_ids[:, end - window : end])
        if hidden is None:
            hidden = read.new_empty(len(read), own.stop - own.start, read.shape[-1])
        begin, stop = max(begin, own.start), min(end, own.stop)
        taken = read[:, begin - end + window : stop - end + window]
        hidden[:, begin - own.start : stop - own.start] = taken
    return hidden


def _windows(tokens: int, window: int, part: slice) -> list[tuple[int, int]]:
    """The windows of a text that some of its tokens are taken from: the first token taken, and its end."""
    ends = [*range(window, tokens, window // 2), tokens]
    taken = zip([0, *ends], ends, strict=False)
    return [(begin, end) for begin, end in taken if begin < part.stop and end > part.start]
