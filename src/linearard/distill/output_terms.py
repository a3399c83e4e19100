"""Terms of the loss that read the model's output distributions: all there is to know of each, in one place.

Objectives, the counting of operations and the planner iterate these. A new term is a class here, in
`OUTPUT_TERMS`, and its weight a field of `ObjectiveConfig` (docs/how-to/extending.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor
from torch.nn import functional

from linearard.capture import SharedSequence
from linearard.distill.output import next_token_loss, output_kl
from linearard.errors import DataError
from linearard.model import ChunkedCausalLM

if TYPE_CHECKING:
    from linearard.distill.config import ObjectiveConfig


@dataclass(frozen=True)
class Outputs:
    """What a term may read of one batch.

    Attributes:
        language_model: gives logits of hidden states.
        student: last hidden states, `[batch, tokens, hidden]`; of this process's tokens where several share
            the window.
        teacher: the original's, or None: no term reads them.
        input_ids: int64 `[batch, tokens]`.
        mask: bool `[batch, tokens]`, False for padding, or None.
        repeated: bool `[batch, tokens]`, tokens that repeat earlier ones, or None: no term reads them.
        shared: the processes that share the window; each has all that does not depend on weights.
    """

    language_model: ChunkedCausalLM
    student: Tensor
    teacher: Tensor | None
    input_ids: Tensor
    mask: Tensor | None
    repeated: Tensor | None
    shared: SharedSequence | None = None


class OutputTerm(ABC):
    """One term, a mean over positions.

    Attributes:
        name: in logs.
        field: of `ObjectiveConfig`, its weight.
        reads_teacher: whether it compares with the original's output.
        foretells: whether it reads the next token, which the last position has none of.
        logit_copies: how many copies of a chunk of logits there are at once: in plain PyTorch, in float32;
            and fused, in the precision of the products. For the planner.
        logit_bytes: bytes read and written for a logit and its gradient, plain and fused. For the planner.
    """

    name: ClassVar[str]
    field: ClassVar[str]
    reads_teacher: ClassVar[bool] = False
    foretells: ClassVar[bool] = False
    logit_copies: ClassVar[tuple[float, float]] = (2.5, 1.0)
    logit_bytes: ClassVar[tuple[int, int]] = (36, 6)

    def weight(self, config: ObjectiveConfig) -> float:
        """Its weight; 0: it is off, or the configuration knows no such term."""
        return getattr(config, self.field, 0.0)

    def positions(self, config: ObjectiveConfig, tokens: int) -> int:
        """Of how many positions of a sequence it forms logits, the last one included."""
        return tokens

    @abstractmethod
    def counted(
        self, config: ObjectiveConfig, everywhere: Tensor, repeated: Tensor | None
    ) -> Tensor:
        """The positions that its mean is over: bool, a part of `[batch, tokens]`.

        Args:
            config: the objective.
            everywhere: bool `[batch, tokens]`, False for padding.
            repeated: see `Outputs`.
        """

    @abstractmethod
    def loss(self, config: ObjectiveConfig, outputs: Outputs) -> Tensor:
        """The term itself, a scalar with gradient, in nats.

        Where processes share the window, the mean over them is the window's term.
        """


class LogitKL(OutputTerm):
    """`KL(teacher || student)` of the output distributions, on the last `logit_positions`."""

    name, field = "logit_kl", "logit_weight"
    reads_teacher = True
    logit_copies, logit_bytes = (4.0, 2.0), (90, 10)

    def positions(self, config: ObjectiveConfig, tokens: int) -> int:
        """See `OutputTerm`."""
        return min(config.logit_positions or tokens, tokens)

    def counted(
        self, config: ObjectiveConfig, everywhere: Tensor, repeated: Tensor | None
    ) -> Tensor:
        """See `OutputTerm`."""
        last = slice(None if config.logit_positions is None else -config.logit_positions, None)
        return told_positions(everywhere, repeated)[:, last]

    def loss(self, config: ObjectiveConfig, outputs: Outputs) -> Tensor:
        """See `OutputTerm`."""
        told = told_positions(outputs.mask, outputs.repeated)
        hidden = (outputs.teacher, outputs.student)
        return output_kl(
            outputs.language_model, *hidden, config.logit_positions, told, outputs.shared
        )


class NextToken(OutputTerm):
    """Cross-entropy of the next token."""

    name, field = "lm", "lm_weight"
    foretells = True

    def counted(
        self, config: ObjectiveConfig, everywhere: Tensor, repeated: Tensor | None
    ) -> Tensor:
        """See `OutputTerm`."""
        return everywhere[:, 1:]

    def loss(self, config: ObjectiveConfig, outputs: Outputs) -> Tensor:
        """See `OutputTerm`."""
        return next_token_loss(
            outputs.language_model,
            outputs.student,
            outputs.input_ids,
            outputs.mask,
            outputs.shared,
        )


class RepeatedTokens(OutputTerm):
    """Cross-entropy of tokens that repeat earlier ones, alone."""

    name, field = "recall", "repeated_weight"
    foretells = True

    def counted(
        self, config: ObjectiveConfig, everywhere: Tensor, repeated: Tensor | None
    ) -> Tensor:
        """See `OutputTerm`."""
        return (everywhere if repeated is None else repeated & everywhere)[:, 1:]

    def loss(self, config: ObjectiveConfig, outputs: Outputs) -> Tensor:
        """See `OutputTerm`."""
        repeated, mask = outputs.repeated, outputs.mask
        wanted = repeated if mask is None else repeated & mask
        return next_token_loss(
            outputs.language_model, outputs.student, outputs.input_ids, wanted, outputs.shared
        )


#: In the order in which they are added up.
OUTPUT_TERMS: list[OutputTerm] = [LogitKL(), NextToken(), RepeatedTokens()]


def told_positions(mask: Tensor | None, repeated: Tensor | None) -> Tensor | None:
    """Bool `[batch, tokens]`, where logit KL counts; None: everywhere.

    Args:
        mask: bool `[batch, tokens]`, False for padding, or None.
        repeated: the same, tokens that repeat earlier ones and have a term of their own, or None: the
            distribution that foretells such a token is not told.
    """
    if repeated is None:
        return mask
    told = functional.pad(~repeated[:, 1:], (0, 1), value=True)
    return told if mask is None else told & mask


def repeated_of(config: ObjectiveConfig, repeated: Tensor | None) -> Tensor | None:
    """The repeated tokens, where a term of their own reads them; else None.

    Raises:
        DataError: such a term, and a batch that does not say which tokens repeat earlier ones.
    """
    if not config.repeated_weight:
        return None
    if repeated is None:
        raise DataError(
            expected="batches with `repeated`, for objective.repeated_weight",
            got="none",
            fix="Set data.repeated_passages, for instance to 0.1.",
        )
    return repeated
