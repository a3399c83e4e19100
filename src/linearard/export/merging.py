"""Fold the trained weights into the base model so that what training changed is still there.

Three ways, in this order: the nearest numbers of the base model's precision; its neighbouring numbers at
random, with the right mean (`rounding.stochastic`); and float32. Each is tried in memory and taken if the
model that it gives is the restored one: by the share of the change that is left, and by KL divergence on
short texts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from linearard.errors import RecipeError
from linearard.export.reader import observe
from linearard.export.rounding import KeptChange, stochastic
from linearard.model import RestorableModel, is_packed
from linearard.model.packed import unpacked
from linearard.model.view_names import ORIGINAL, RESTORED, STRETCHED

#: Precision of the trained weights: by what they need, that of the model's other weights, float32.
MERGE_DTYPES = ("auto", "model", "float32")
#: KL to the original may differ by so much from the restored model's, relatively, and so much in nats
#: where both are as good as 0.
_KL_SHARE, _KL_NATS = 0.05, 1e-6
#: The share of the change that must be kept, and what rounding may add, as a KL divergence, over what
#: training changed.
_LEAST_SHARE, _NOISE_SHARE = 0.95, 0.05
Probes = list[dict[str, Any]]


@dataclass
class Reference:
    """What the merged model is measured against, on the short texts.

    Attributes:
        original, stretched, restored: float32 logits `[tokens, vocabulary]` by text, of the three views.
    """

    original: list[Tensor]
    stretched: list[Tensor]
    restored: list[Tensor]

    @property
    def trained(self) -> bool:
        """Whether the weights were changed at all."""
        return not all(map(torch.equal, self.stretched, self.restored))


@dataclass
class Price:
    """What a merge costs: KL divergences in nats a token, on the short texts.

    Attributes:
        dtype, rounding: of the trained weights: nearest, stochastic.
        kl_restored: of the restored model to the original.
        kl_exported: of the merged model to the original.
        noise: KL of the merged model to the restored one, over that of the untrained stretched one.
        change: share, cosine and norm of what is left of the change of the weights, over all matrices.
        worst_matrix: the same of the matrix of which the least is left, and its name.
        narrower: whether the model's other weights have fewer bits.
    """

    dtype: str
    rounding: str
    kl_restored: float
    kl_exported: float
    noise: float
    change: dict[str, float]
    worst_matrix: dict[str, Any]
    narrower: bool

    @property
    def kept(self) -> bool:
        """Whether this is the restored model still."""
        allowed = _KL_SHARE * self.kl_restored + _KL_NATS
        return (
            abs(self.kl_exported - self.kl_restored) <= allowed
            and abs(1 - self.change["share"]) <= 1 - _LEAST_SHARE
            and self.noise <= _NOISE_SHARE
        )

    def __str__(self) -> str:
        return (
            f"{self.dtype}, {self.rounding}: {self.change['share']:.3f} of the change kept (cosine "
            f"{self.change['cosine']:.3f}), KL to the original {self.kl_exported:.4g} for the restored "
            f"model's {self.kl_restored:.4g}, {self.noise:.2g} of what training changed is rounding"
        )


def look(restorable: RestorableModel, texts: Probes) -> Reference:
    """Logits of the three views, computed in float32.

    Args:
        restorable: its views are entered.
        texts: see `reader.observe`.
    """
    found = {}
    for view in (ORIGINAL, STRETCHED, RESTORED):
        with restorable.view(view), packed_in_float32(restorable.model):
            found[view] = observe(restorable.model, texts)["logits"]
    return Reference(**found)


def merge(
    restorable: RestorableModel,
    asked: str,
    texts: Probes,
    seen: Reference,
    precision: torch.dtype | None = None,
) -> tuple[Any, list[Price]]:
    """Merge so that the change is kept.

    Args:
        restorable: its adapter is used up.
        asked: a precision for the trained weights, or `auto`.
        texts, seen: what `look` was given and found.
        precision: what `model` means where the weights are written in another precision than they have.

    Returns:
        The merged model, and the price of each way that was tried, the one taken last.

    Raises:
        RecipeError: the precision that was asked for does not hold what training changed.
    """
    dtype = torch.float32 if asked == "float32" else precision or base_dtype(restorable)
    ways: list[tuple[torch.dtype, str]] = [(dtype, "nearest")]
    if dtype != torch.float32:
        ways.append((dtype, "stochastic"))
        if asked == "auto":
            ways.append((torch.float32, "nearest"))
    prices = []
    for way, rounding in ways:
        merged, price = _try(restorable, way, rounding, texts, seen)
        prices.append(price)
        if price.kept:
            return merged, prices
    raise RecipeError(
        expected="a precision of the merged weights that holds what training changed",
        got="; ".join(map(str, prices)),
        fix="Give --merge-dtype float32 (or auto), or --format adapter.",
    )


def report(prices: list[Price]) -> dict[str, Any]:
    """What `linearard_export.json` says of the merge."""
    return {"merge": asdict(prices[-1]), "merges_tried": [asdict(price) for price in prices[:-1]]}


def _try(
    restorable: RestorableModel, dtype: torch.dtype, rounding: str, texts: Probes, seen: Reference
) -> tuple[Any, Price]:
    kept = KeptChange()

    def rounded(name: str, trained: Tensor, original: Tensor) -> Tensor:
        own = stochastic(trained, dtype, name) if rounding == "stochastic" else trained.to(dtype)
        kept.add(name, original, trained, own)
        return own

    merged = restorable.adapter.merge(rounded)
    logits = observe(merged, texts)["logits"]
    learned = kl(seen.restored, seen.stretched)
    noise = kl(seen.restored, logits)
    worst = min(kept.by_name, key=lambda name: kept.by_name[name]["share"], default=None)
    return merged, Price(
        dtype=str(dtype).removeprefix("torch."),
        rounding=rounding,
        kl_restored=kl(seen.original, seen.restored),
        kl_exported=kl(seen.original, logits),
        noise=noise / learned if learned > _KL_NATS else 0.0,
        change=kept.total,
        worst_matrix={} if worst is None else {"name": worst} | kept.by_name[worst],
        narrower=base_dtype(restorable) != dtype,
    )


def kl(target: list[Tensor], other: list[Tensor]) -> float:
    """Mean over tokens of KL(target || other), in nats; logits `[tokens, vocabulary]` by text."""
    total, count = 0.0, 0
    for p, q in zip(target, other, strict=True):
        logs = [functional.log_softmax(x.double(), dim=-1) for x in (p, q)]
        total += float((logs[0].exp() * (logs[0] - logs[1])).sum())
        count += len(p)
    return total / max(count, 1)


def base_dtype(restorable: RestorableModel) -> torch.dtype:
    """Precision of the weights that are not trained."""
    # Of the head: LoRA's factors and directly trained matrices are float32, packed ones are bytes.
    return next(restorable.model.get_output_embeddings().parameters()).dtype


@contextlib.contextmanager
def packed_in_float32(model: nn.Module) -> Iterator[None]:
    """Let layers in 4 bits answer with float32 products of the same numbers."""
    forwards: list[tuple[nn.Module, Callable[..., Tensor]]] = []
    for module in filter(is_packed, model.modules()):

        def forward(x: Tensor, module: Any = module) -> Tensor:
            dense = unpacked(module)
            bias = None if dense.bias is None else dense.bias.to(x.dtype)
            return functional.linear(x, dense.weight.to(x.dtype), bias)

        forwards.append((module, module.forward))
        module.forward = forward
    try:
        yield
    finally:
        for module, forward in forwards:
            module.forward = forward
