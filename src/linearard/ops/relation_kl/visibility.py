"""Which keys a row sees: causality, a sliding window, packed documents, invalid tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from linearard.errors import OperandError


class Visibility(NamedTuple):
    """Row i sees key j if all that is given here lets it.

    Attributes:
        causal: j <= i.
        window: i - j < window, and j - i < window. None where no row is cut.
        cu_seqlens: int32 [documents + 1] on the operands' device; i and j lie between the same two
            boundaries.
        valid: bool [B, N] on the operands' device; True at i and at j.
    """

    causal: bool
    window: int | None = None
    cu_seqlens: Tensor | None = None
    valid: Tensor | None = None

    @staticmethod
    def of(
        shape: tuple[int, int],
        device: torch.device,
        *,
        causal: bool,
        window: int | None,
        cu_seqlens: Tensor | Sequence[int] | None,
        lengths: Tensor | Sequence[int] | None,
        mask: Tensor | None,
    ) -> Visibility:
        """Check the options of ``attention_kl`` for operands of ``shape`` (B, N).

        Raises:
            OperandError: an option is wrong in itself or for this shape.
        """
        return Visibility(
            causal=bool(causal),
            window=_window(window, shape[1]),
            cu_seqlens=_boundaries(cu_seqlens, *shape, device),
            valid=_valid_tokens(lengths, mask, *shape, device),
        )

    @property
    def banded(self) -> bool:
        """Whether a row's keys are narrowed by more than causality and invalid tokens."""
        return self.window is not None or self.cu_seqlens is not None

    def spans(self, tokens: int, device: torch.device) -> Tensor:
        """The first key and one past the last that each row sees, causality aside: int32 [2, N].

        Both never decrease along the rows. Row i sees j exactly if row j sees i, so the spans also
        say which rows see a key. Whatever the boundaries hold, i lies in [0, N) and in its own span.
        """
        at = torch.arange(tokens, dtype=torch.int32, device=device)
        first, end = torch.zeros_like(at), torch.full_like(at, tokens)
        if self.cu_seqlens is not None:
            edges = torch.nn.functional.pad(self.cu_seqlens, (1, 1))
            edges[-1:].fill_(tokens)  # by index it would wait for the device
            document = torch.searchsorted(edges, at, right=True).clamp(1, len(edges) - 1)
            first, end = edges[document - 1], edges[document]
        if self.window is not None:
            first = torch.maximum(first, at - (self.window - 1))
            end = torch.minimum(end, at + self.window)
        first = first.clamp_min(0).minimum(at)
        end = end.clamp_max(tokens).maximum(at + 1)
        return torch.stack((first, end))


def _window(window: int | None, tokens: int) -> int | None:
    if window is None:
        return None
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise OperandError(
            expected="window as an integer of at least 1, or None",
            got=repr(window),
            fix="Count the row's own token: 1 is the narrowest window; None is no window.",
        )
    return window if window < tokens else None


def _integers(name: str, values: Tensor | Sequence[int], expected: str, fix: str) -> Tensor:
    try:
        values = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise OperandError(expected=expected, got=f"{name} {values!r}", fix=fix) from None
    if values.dtype.is_floating_point or values.dtype.is_complex or values.dtype == torch.bool:
        raise OperandError(expected=expected, got=str(values.dtype), fix=fix)
    return values


def _boundaries(
    cu_seqlens: Tensor | Sequence[int] | None, batch: int, tokens: int, device: torch.device
) -> Tensor | None:
    """int32 [documents + 1] on ``device``; values are checked where they lie on the CPU."""
    if cu_seqlens is None:
        return None
    expected = f"cu_seqlens as integers [documents + 1] that never decrease from 0 to {tokens}"
    fix = "Give the cumulative lengths of all documents, as varlen attention takes them."
    edges = _integers("cu_seqlens", cu_seqlens, expected, fix)
    if edges.dim() != 1 or len(edges) < 2:
        raise OperandError(expected=expected, got=f"shape {tuple(edges.shape)}", fix=fix)
    if batch != 1:
        raise OperandError(
            expected="a batch of 1 with cu_seqlens",
            got=f"a batch of {batch}",
            fix="Pack the sequences into one of [1, heads, tokens, head_dim], or give lengths.",
        )
    if edges.device.type == "cpu" and not (
        edges[0] == 0 and edges[-1] == tokens and bool((edges.diff() >= 0).all())
    ):
        raise OperandError(expected=expected, got=f"{edges.tolist()}", fix=fix)
    return edges.to(device, torch.int32)


def _valid_tokens(
    lengths: Tensor | Sequence[int] | None,
    mask: Tensor | None,
    batch: int,
    tokens: int,
    device: torch.device,
) -> Tensor | None:
    """Bool [B, N] on ``device``, or None where every token is valid."""
    if lengths is not None and mask is not None:
        raise OperandError(
            expected="lengths or mask", got="both", fix="Fold the lengths into the mask."
        )
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise OperandError(
                expected="mask as a bool tensor",
                got=str(got),
                fix="Pass attention_mask.bool(), True where the token is valid.",
            )
        if mask.shape != (batch, tokens):
            raise OperandError(
                expected=f"mask of shape {(batch, tokens)}",
                got=str(tuple(mask.shape)),
                fix="Give one value a token; the causal part is what causal=True adds.",
            )
        return mask.to(device)
    if lengths is None:
        return None
    expected = f"lengths as {batch} integers from 0 to {tokens}"
    fix = "Give the number of valid tokens of each sequence."
    lengths = _integers("lengths", lengths, expected, fix)
    if lengths.shape != (batch,):
        raise OperandError(expected=expected, got=f"shape {tuple(lengths.shape)}", fix=fix)
    if lengths.device.type == "cpu" and not ((lengths >= 0) & (lengths <= tokens)).all():
        raise OperandError(expected=expected, got=str(lengths.tolist()), fix=fix)
    return torch.arange(tokens, device=device) < lengths.to(device)[:, None]
