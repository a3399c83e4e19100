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

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from linearard.capture.sdpa import (
    preferred_backends,
    windowed_attention,
    with_contiguous_gradient,
)
from linearard.errors import ModelError

_PREFIX = "linearard_"
_UNMASKED = _PREFIX + "sdpa_unmasked"
#: Models whose attention is causal within the `sliding_window` that it is given, and nothing else.
_NO_OTHER_MASKS = {"llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma", "phi3"}
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
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    sliding_window: int | None = None


Observer = Callable[[LayerAttention], None]


class StopForward(Exception):
    """Raised by an observer that has seen the last layer it needs; ends the forward pass there."""


class AttentionTap:
    """Shows a model's attention operands to one observer at a time.

    Args:
        model: a `transformers` decoder. Its attention implementation is wrapped in place; results do not
            change.

    Attributes:
        modules: the attention module of each layer.

    Raises:
        ModelError: the model's attention does not go through the `transformers` attention interface.
    """

    def __init__(self, model: nn.Module) -> None:
        self._observer: Observer | None = None
        base = _base_implementation(model)
        _register(base)
        model.set_attn_implementation(_PREFIX + base)
        self.modules: dict[int, nn.Module] = {}
        for module in model.modules():
            if isinstance(getattr(module, "layer_idx", None), int) and hasattr(module, "scaling"):
                setattr(module, _TAP, self)
                self.modules[module.layer_idx] = module
        layers = self.modules.keys()
        config = model.config.get_text_config()
        if not layers or config._attn_implementation != _PREFIX + base:
            raise ModelError(
                expected="attention modules that use the transformers attention interface",
                got=type(model).__name__,
                fix="Choose an architecture whose attention is selectable with attn_implementation.",
            )
        if layers != set(range(config.num_hidden_layers)):
            raise ModelError(
                expected="attention in every layer",
                got=f"{len(layers)} of {config.num_hidden_layers} layers of {type(model).__name__} with it",
                fix="Choose a decoder without recurrent or convolutional layers.",
            )
        self.num_layers = len(layers)

    def stopping_at(self, observer: Observer | None) -> contextlib.AbstractContextManager[None]:
        """Like `observe`, and a `StopForward` from the observer ends the block quietly.

        After any other error nothing observes any more: there will be no backward pass.
        """
        return _Stopping(self, observer)

    def observe(self, observer: Observer | None) -> None:
        """Show the operands of every following forward (and recomputed) pass to `observer`.

        Not a context manager: under gradient checkpointing the layers run again in the backward pass,
        possibly on another thread, and must find the same observer there.
        """
        self._observer = observer


class _Stopping(contextlib.AbstractContextManager[None]):
    """See `AttentionTap.stopping_at`.

    Not a generator: the frame of one keeps the exception that it has caught, which keeps the frames that it
    came through, with all their tensors, until the garbage collector happens to come.
    """

    def __init__(self, tap: AttentionTap, observer: Observer | None) -> None:
        self._tap, self._observer = tap, observer

    def __enter__(self) -> None:
        self._tap.observe(self._observer)

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> bool:
        stopped = kind is not None and issubclass(kind, StopForward)
        if kind is not None and not stopped:
            self._tap.observe(None)
        return stopped


def needs_no_mask(model: nn.Module) -> bool:
    """Whether whole windows are read without a mask: see `unpadded`."""
    config = model.config.get_text_config()
    known = config.model_type in _NO_OTHER_MASKS
    return known and config._attn_implementation in (_PREFIX + "sdpa", _UNMASKED)


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


def _base_implementation(model: nn.Module) -> str:
    config = model.config.get_text_config()
    base = (config._attn_implementation or "eager").removeprefix(_PREFIX)
    if base == "sdpa" and getattr(config, "attn_logit_softcapping", None):
        return "eager"  # PyTorch's scaled_dot_product_attention has no soft capping (Gemma 2)
    return base


def _register(base: str) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(_PREFIX + base, partial(_tapped_attention, base))
    AttentionMaskInterface.register(_PREFIX + base, ALL_MASK_ATTENTION_FUNCTIONS[base])
    if base == "sdpa":  # under a name without a mask function, no mask is made
        AttentionInterface.register(_UNMASKED, partial(_tapped_attention, base))


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
    tap: AttentionTap | None = getattr(module, _TAP, None)
    scores_scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = kwargs.get("sliding_window")
    if tap is not None and tap._observer is not None:
        tap._observer(LayerAttention(module.layer_idx, query, key, value, scores_scale, window))
    forward = _base_function(base, module)
    if base != "sdpa":
        return forward(module, query, key, value, attention_mask, *args, scaling=scaling, **kwargs)
    if attention_mask is None and window is not None and window < query.shape[2]:
        return windowed_attention(query, key, value, window, scores_scale), None
    backends = preferred_backends(query, attention_mask)
    with sdpa_kernel(backends, set_priority=True):
        output, weights = forward(
            module, query, key, value, attention_mask, *args, scaling=scaling, **kwargs
        )
    if SDPBackend.CUDNN_ATTENTION in backends:
        output = with_contiguous_gradient(output)
    return output, weights


def _base_function(base: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    if base == "eager":  # defined beside each model, not in the registry
        return sys.modules[type(module).__module__].eager_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS[base]
