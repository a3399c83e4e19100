"""Rows of the embedding and the LM head for tokens that were added to a tokenizer."""

from __future__ import annotations

from typing import Any

import torch

_MARK = "_linearard_rows_added"


@torch.no_grad()
def add_rows(model: Any, tokens: int) -> None:
    """Make room for so many tokens; does nothing where there is.

    Each new row is the mean of the model's own, so that a new token is no likelier than the others are on
    average, and the same wherever it is made. Rows are not trained here.

    Args:
        model: a `transformers` causal language model with dense embeddings, on its device.
        tokens: of the tokenizer.
    """
    before = model.get_input_embeddings().num_embeddings
    if tokens <= before:
        return
    means = [(part, _mean(part)) for part in _parts(model)]
    model.resize_token_embeddings(tokens, mean_resizing=False)
    for part, (_, mean) in zip(_parts(model), means, strict=True):
        for parameter, value in zip((part.weight, part.bias), mean, strict=True):
            if parameter is not None:
                parameter.data[before:] = value.to(parameter)
    setattr(model, _MARK, True)


def has_added_rows(model: Any) -> bool:
    """Whether `add_rows` has done anything to this model."""
    return getattr(model, _MARK, False)


def _parts(model: Any) -> list[Any]:
    """Embedding and head; the first alone where they are one."""
    head = model.get_output_embeddings()
    embedding = _Biased(model.get_input_embeddings())
    tied = head is None or head.weight is embedding.weight
    return [embedding] if tied else [embedding, _Biased(head)]


class _Biased:
    """A part of which `weight` and `bias` can be asked for, whether it has one."""

    def __init__(self, part: Any) -> None:
        self.weight, self.bias = part.weight, getattr(part, "bias", None)


def _mean(part: _Biased) -> tuple[torch.Tensor | None, ...]:
    # on the CPU in float64: every device finds the same
    return tuple(
        None if x is None else x.data.cpu().double().mean(0) for x in (part.weight, part.bias)
    )
