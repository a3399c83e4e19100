"""Looks at held-out windows during a stage: how near the original, how well the long window is read."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from linearard.data import DataConfig, token_blocks
from linearard.distill import ObjectiveConfig, RestorationModule
from linearard.errors import DataError
from linearard.model import RestorableModel
from linearard.model.view_names import RESTORED
from linearard.recipe.held_out import HeldOutConfig

_RECALL_WEIGHT = 0.1
_ROUNDING = 0.01  # share of KL, nats of a loss
_RECALL = 0.1  # share of a long window that repeats earlier passages of it
_OBJECTIVES = {
    "short": ObjectiveConfig(relations={}, logit_weight=1.0, logit_positions=None),
    "long": ObjectiveConfig(relations={}, lm_weight=1.0, repeated_weight=1.0),
}


@dataclass(frozen=True)
class Look:
    """One look at the held-out windows.

    Attributes:
        kl: KL to the original on the short windows, nats a token.
        long: next-token loss of the long windows, nats; None: none are read.
        recall: that of the passages which come back in them, nats; None as above.
    """

    kl: float
    long: float | None = None
    recall: float | None = None

    @property
    def cost(self) -> float:
        """Nats by which two states of one model are compared; infinite where something is not finite.

        A nat of the long windows counts as one of KL to the original, and one of the passages that come
        back in them, of which there are few, as a tenth.
        """
        if not self.finite:
            return math.inf
        return self.kl + (self.long or 0.0) + _RECALL_WEIGHT * (self.recall or 0.0)

    def no_worse_than(self, other: Look, share: float = 1.0) -> bool:
        """Whether neither KL nor the long windows are worse than in another state, but for rounding.

        Args:
            other: the state to compare with.
            share: of its KL that is allowed.
        """
        kl = self.finite and self.kl <= share * other.kl * (1 + _ROUNDING)
        return kl and (self.long is None or self.long <= other.long + _ROUNDING)

    @property
    def finite(self) -> bool:
        """Whether every number is one."""
        return all(math.isfinite(value) for value in self.values.values())

    @property
    def values(self) -> dict[str, float]:
        """The numbers that were measured, by name."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}


@dataclass(frozen=True)
class HeldOutText:
    """Windows of held-out text.

    Attributes:
        short: int64 `[windows, tokens]`.
        long: tokens int64 `[tokens]` and which of them repeat earlier ones, bool `[tokens]`, a window.
    """

    short: Tensor
    long: list[tuple[Tensor, Tensor]]


def held_out_text(
    config: HeldOutConfig, data: DataConfig, tokenizer: Any, *, progress: bool
) -> HeldOutText | None:
    """The windows that a configuration asks for, from the held-out side of the text.

    Documents that are too short for a window are joined.

    Args:
        config: which windows; without short ones the stage is not watched.
        data: where the text comes from.
        tokenizer: a fast tokenizer of `transformers`.
        progress: show a bar while tokenising.

    Raises:
        DataError: there is no held-out text, or too little of it.
    """
    if not config.sequences:
        return None
    plain = dataclasses.replace(data, repeated_passages=0.0)
    short = _blocks(plain, tokenizer, config.window, config.sequences, progress)
    long: list[dict[str, Tensor]] = []
    if config.long_window is not None:
        repeating = dataclasses.replace(data, repeated_passages=_RECALL)
        long = _blocks(repeating, tokenizer, config.long_window, config.long_sequences, progress)
    return HeldOutText(
        torch.stack([block["input_ids"] for block in short]),
        [(block["input_ids"], block["repeated"]) for block in long],
    )


def _blocks(
    data: DataConfig, tokenizer: Any, window: int, count: int, progress: bool
) -> list[dict[str, Tensor]]:
    options = {"split": "validation", "count": count, "progress": progress}
    try:
        blocks = token_blocks(data, tokenizer, window, **options)
    except DataError:
        try:
            joined = dataclasses.replace(data, pack=True)
            blocks = token_blocks(joined, tokenizer, window, **options)
        except DataError as error:
            raise error.reworded(
                expected=f"{error.expected}, to watch a stage by (held_out)",
                fix=f"{error.fix} Or lower held_out.sequences, held_out.window or held_out.long_window.",
            ) from error
    return [blocks[index] for index in range(count)]


class HeldOut:
    """Measures the model as it is on held-out windows; weights, modes and random numbers stay.

    Args:
        restorable: the model.
        text: the windows.
        dtype: half precision of the products, or None: that of the weights.
    """

    def __init__(
        self, restorable: RestorableModel, text: HeldOutText, dtype: torch.dtype | None
    ) -> None:
        self._restorable, self._text, self._dtype = restorable, text, dtype
        self._module = RestorationModule(restorable, _OBJECTIVES)

    @torch.no_grad()
    def look(self, view: str = RESTORED) -> Look:
        """One look; every process of a distributed run gets the first one's.

        Args:
            view: of the model, the one with RoPE stretched and its weights as they are, or `stretched`,
                with those that it was loaded with.
        """
        model, device = self._restorable.model, self._restorable.device
        modes = [(module, module.training) for module in model.modules()]
        mixed = contextlib.nullcontext()
        if self._dtype is not None:
            mixed = torch.autocast(device.type, dtype=self._dtype)
        self._module.eval()
        try:
            with mixed, self._restorable.view(view):
                terms = [
                    self._module(row[None].to(device), part="short")["short/logit_kl"]
                    for row in self._text.short
                ]
                kl, far = torch.stack(terms).mean(), []
                for ids, repeated in self._text.long:
                    found = self._module(
                        ids[None].to(device), repeated=repeated[None].to(device), part="long"
                    )
                    far.append(torch.stack((found["long/lm"], found["long/recall"])))
        finally:
            for module, training in modes:
                module.training = training
        numbers = [kl, *(torch.stack(far).mean(0) if far else [])]
        found = torch.stack([number.float() for number in numbers])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(found, 0)
        return Look(*found.tolist())
