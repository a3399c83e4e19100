"""See every layer's queries, keys and values as the attention consumes them.

`transformers` lets a model's attention be replaced by name (`AttentionInterface`). We register one
function per wrapped implementation which shows its operands to an observer and then calls the wrapped
one, so any architecture that uses the interface works and no model code is patched.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel

from linearard.architectures import WITHOUT_ATTENTION, architecture
from linearard.capture.blocks import PLANLESS, Scores, attention_in_blocks
from linearard.capture.contexts import Observing, Sharing, Step
from linearard.capture.masks import UnwrittenMask, compact_mask
from linearard.capture.sdpa import causal_attention, one_row
from linearard.capture.selected import with_choice
from linearard.capture.sequence import SharedSequence
from linearard.errors import ModelError

_PREFIX = "linearard_"
#: This package's own choice of kernels, for models that would run `sdpa`; under the second name, without
#: masks. (`transformers` refuses names with "sdpa" in them for models whose own code has none.)
_KERNELS, _UNMASKED = "kernels", _PREFIX + "kernels_unmasked"
_TAP = "_linearard_tap"


@dataclass(frozen=True)
class LayerAttention:
    """The operands of one layer's attention.

    Attributes:
        layer: index of the layer, from 0.
        query: `[batch, heads, tokens, head_dim]`, after RoPE and any query norm.
        key: `[batch, kv_heads, tokens, head_dim]`, after RoPE and any key norm.
        value: `[batch, kv_heads, tokens, head_dim]`.
        scaling: factor on the scores.
        sliding_window: how many tokens back a query sees, itself included; None: all.
        repeats: how often each key head is there, where processes share a window (`SharedSequence`).
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    sliding_window: int | None = None
    repeats: int = 1


Observer = Callable[[LayerAttention], None]


class AttentionTap:
    """Shows a model's attention operands to one observer at a time.

    Args:
        model: a `transformers` decoder. Its attention implementation is wrapped in place; results do not
            change.

    Attributes:
        modules: the attention module of each layer that has one; hybrid models have others (Qwen3-Next).
        num_layers: of the decoder, with attention or not.
        ended_in: the layer in which the pass within `observing` ended early, where it could not be left by an
            exception (`model.sharding`); None: it did not.
        sequence: the processes that share each window, or None: every one reads its own.

    Raises:
        ModelError: the model's attention does not go through the `transformers` attention interface.
    """

    def __init__(self, model: nn.Module) -> None:
        self._observer: Observer | None = None
        self._in_step = False
        self.ended_in: int | None = None
        self.sequence: SharedSequence | None = None
        self._repeats = 1
        base = _base_implementation(model)
        _register(base)
        model.set_attn_implementation(_PREFIX + base)
        self.modules: dict[int, nn.Module] = {}
        for module in _decoder(model).modules():
            if isinstance(getattr(module, "layer_idx", None), int) and hasattr(module, "scaling"):
                setattr(module, _TAP, self)
                self.modules[module.layer_idx] = module
        config = model.config.get_text_config()
        wanted = attention_layers(config)
        if not self.modules or config._attn_implementation != _PREFIX + base:
            raise ModelError(
                expected="attention modules that use the transformers attention interface",
                got=type(model).__name__,
                fix="Choose an architecture whose attention is selectable with attn_implementation.",
            )
        if missing := [layer for layer in wanted if layer not in self.modules]:
            raise ModelError(
                expected="attention in every layer that layer_types do not give another kind",
                got=f"{type(model).__name__} without it in {len(missing)} of {len(wanted)} of them, first in "
                f"layer {missing[0]}",
                fix="Choose another decoder.",
            )
        self.num_layers = config.num_hidden_layers

    def observing(
        self, observer: Observer | None, *, recomputed: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """Show the operands of every pass within the block; a `StopForward` ends the block quietly.

        Afterwards whatever observed before does so again.

        Args:
            observer: is called for each layer in turn; None: nothing observes.
            recomputed: whether layers run again in the backward pass, possibly on another thread, and have
                to find the same observer there: it then stays until the end of `step`.

        Raises:
            RuntimeError: `recomputed` outside of a `step`.
        """
        self._check_step(recomputed)
        return Observing(self, observer, recomputed)

    def step(self) -> contextlib.AbstractContextManager[None]:
        """Forward and backward pass of one batch; at the end of the block nothing observes any more."""
        return Step(self)

    def sharing(
        self, sequence: SharedSequence | None, *, recomputed: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """Let processes share the windows of every pass within the block.

        Args:
            sequence: the processes; None: this one reads its own.
            recomputed: as of `observing`.

        Raises:
            RuntimeError: `recomputed` outside of a `step`.
        """
        self._check_step(recomputed and sequence is not None)
        return Sharing(self, sequence, recomputed)

    def _check_step(self, recomputed: bool) -> None:
        if recomputed and not self._in_step:
            raise RuntimeError(
                "layers are computed again in the backward pass and have to be observed there: put the "
                "forward and the backward pass of a batch into one `with tap.step():`"
            )


def attention_layers(config: Any) -> list[int]:
    """Layers of a text configuration that have attention: all, but for hybrid models (Qwen3-Next)."""
    types = getattr(config, "layer_types", None) or [""] * config.num_hidden_layers
    return [layer for layer, kind in enumerate(types) if kind not in WITHOUT_ATTENTION]


def has_own_kernels(model: nn.Module) -> bool:
    """Whether attention is this package's choice of kernels, which take a boolean mask of a row."""
    return model.config.get_text_config()._attn_implementation in (_PREFIX + _KERNELS, _UNMASKED)


def needs_no_mask(model: nn.Module) -> bool:
    """Whether whole windows are read without a mask: see `unpadded`."""
    known = architecture(model.config.get_text_config().model_type)
    return known.causal_alone and has_own_kernels(model)


@contextlib.contextmanager
def unpadded(model: nn.Module) -> Iterator[None]:
    """Inside the block the model reads whole windows: no padding, no packed texts, no cache.

    Then nothing needs a mask: causality and sliding windows are known to the attention function.
    `transformers` would wait for the device in every pass to see whether texts are packed, and would
    write a sliding window down as a mask, with which attention is several times slower.
    """
    config = model.config.get_text_config()
    before = config._attn_implementation
    if needs_no_mask(model):
        config._attn_implementation_internal = _UNMASKED
    try:
        yield
    finally:
        config._attn_implementation_internal = before


def _decoder(model: nn.Module) -> nn.Module:
    """The language model inside: a vision tower beside it is none of ours."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    return decoder if isinstance(decoder, nn.Module) else model


def _base_implementation(model: nn.Module) -> str:
    config = model.config.get_text_config()
    base = (config._attn_implementation or "eager").removeprefix(_PREFIX)
    if architecture(config.model_type).caps_or_sinks:
        # transformers runs these eagerly and writes all scores down: its own kernels know no caps and sinks.
        return _KERNELS if base in ("sdpa", "eager") else base
    if base == "sdpa":
        return "eager" if getattr(config, "attn_logit_softcapping", None) else _KERNELS
    return base


def _register(base: str) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    if base == _KERNELS:
        AttentionInterface.register(_PREFIX + base, _shared_attention)
        AttentionMaskInterface.register(_PREFIX + base, compact_mask)
        # under a name without a mask function, no mask is made
        AttentionInterface.register(_UNMASKED, _shared_attention)
        return
    AttentionInterface.register(_PREFIX + base, partial(_tapped_attention, base))
    AttentionMaskInterface.register(_PREFIX + base, ALL_MASK_ATTENTION_FUNCTIONS[base])


def _tapped_attention(
    base: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    _show(module, query, key, value, scaling, kwargs.get("sliding_window"))
    mask = with_choice(module, query, key, attention_mask, kwargs)
    forward = _base_function(base, module)
    return forward(module, query, key, value, mask, *args, scaling=scaling, **kwargs)


def _shared_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """`_attention`, also of a window that processes share, of which this one has some tokens."""
    tap: AttentionTap | None = getattr(module, _TAP, None)
    shared = None if tap is None else tap.sequence
    if tap is None or shared is None:
        return _attention(module, query, key, value, *args, **kwargs)
    if query.shape[1] % shared.size:
        raise ModelError(
            expected=f"query heads that {shared.size} processes can share",
            got=f"{query.shape[1]} in layer {module.layer_idx}",
            fix="Set sequence_parallel to a divisor of their number.",
        )
    tap._repeats = shared.repeats(key.shape[1])
    operands = map(shared.to_heads, (query, key, value))
    output, weights = _attention(module, *operands, *args, **kwargs)
    return shared.to_tokens(output), weights


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | UnwrittenMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention without a mask of all tokens by all tokens; see `AttentionInterface` of `transformers`.

    Returns:
        The output `[batch, tokens, heads, head_dim]`, and no weights.
    """
    scale = _show(module, query, key, value, scaling, sliding_window)
    query, key, value = _in_one_precision(query, key, value)
    attention_mask = with_choice(module, query, key, attention_mask, kwargs)
    if softcap is not None or s_aux is not None:
        scores, seen = Scores(scale, softcap), attention_mask
        if seen is None and query.shape[2] == 1:
            seen = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool, device=query.device)
        if isinstance(seen, UnwrittenMask) and seen.causal and not seen.causal.documents:
            sliding_window, seen = seen.causal.window, None
        options = {"window": sliding_window, "mask": seen, "sinks": s_aux}
        return attention_in_blocks(query, key, value, scores, **options), None
    described = attention_mask is None or isinstance(attention_mask, UnwrittenMask)
    usual = getattr(module, "is_causal", True) and kwargs.get("is_causal") is not False
    usual = usual and not dropout and kwargs.get("position_bias") is None
    if query.shape[2] == 1 or not described or not usual:
        # A row, a mask of the caller's own, weights dropped at random: transformers' way, whatever it takes.
        mask = _written(query, attention_mask, sliding_window)
        if query.shape[2] == 1 and usual and mask is not None and mask.shape[1] == 1:
            return one_row(query, key, value, scale, mask), None
        forward = _base_function("sdpa", module)
        with sdpa_kernel(PLANLESS, set_priority=True):
            return forward(module, query, key, value, mask, dropout, scale, **kwargs)
    if attention_mask is None:
        return causal_attention(query, key, value, scale, window=sliding_window), None
    causal = attention_mask.causal
    if causal is None:
        return attention_in_blocks(query, key, value, Scores(scale), mask=attention_mask), None
    options = {"window": causal.window, "documents": causal.documents}
    return causal_attention(query, key, value, scale, **options), None


def _show(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    window: int | None,
) -> float:
    """Let the observer see the operands; the factor on the scores."""
    tap: AttentionTap | None = getattr(module, _TAP, None)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if tap is not None and tap._observer is not None:
        repeats = 1 if tap.sequence is None else tap._repeats
        operands = (query, key, value)
        tap._observer(LayerAttention(module.layer_idx, *operands, scale, window, repeats))
    return scale


def _in_one_precision(*operands: Tensor) -> tuple[Tensor, ...]:
    """As autocast would hand them to an attention kernel."""
    kind = operands[0].device.type
    if not torch.is_autocast_enabled(kind) or operands[0].dtype == torch.float64:
        return operands
    dtype = torch.get_autocast_dtype(kind)
    return tuple(x.to(dtype) for x in operands)


def _written(
    query: Tensor, mask: Tensor | UnwrittenMask | None, window: int | None
) -> Tensor | None:
    if isinstance(mask, UnwrittenMask):
        return mask.whole()
    tokens = query.shape[2]
    if mask is not None or window is None or window >= tokens:
        return mask
    rows = torch.arange(tokens, device=query.device)
    distance = rows[:, None] - rows
    return ((distance >= 0) & (distance < window))[None, None]


def _base_function(base: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    if base == "eager":  # defined beside each model, not in the registry
        return sys.modules[type(module).__module__].eager_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS[base]
