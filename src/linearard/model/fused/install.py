"""Put the fused steps into a model: beside its own code, which stays for every other case.

A module is fused if it is of a class known here, its weights are frozen (LoRA apart), and its result on a
few numbers is that of its own code. Each call looks again: hooks, caches, merged or quantised weights and
other precisions go the plain way.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from linearard.architectures import architecture_of_package
from linearard.model.fused.layers import gated_mlp, norm
from linearard.model.fused.projections import LowRank, Projection, base_outputs, project
from linearard.model.packed import has_packed
from linearard.model.two_view_linear import TwoViewLinear
from linearard.ops import pointwise

_LOGGER = logging.getLogger(__name__)
#: How the names of classes end that have fused forms.
_ENDINGS = {"RMSNorm": "norm", "MLP": "mlp", "Attention": "attention"}
#: The cache's name, before and since transformers 5.24.
_CACHES = ("past_key_values", "cache")


@dataclass
class FusedLayers:
    """What `fuse_layers` has fused.

    Attributes:
        modules: each fused module, and its kind: `norm`, `mlp` or `attention`.
        everywhere: whether the fused steps run where no kernels are, too: on CPUs and in float32, where they
            gain nothing.
    """

    modules: dict[nn.Module, str] = field(default_factory=dict)
    everywhere: bool = True

    @property
    def counts(self) -> Counter[str]:
        """How many modules of each kind are fused."""
        return Counter(self.modules.values())

    def undo(self) -> None:
        """Give every module its own code back."""
        for module in self.modules:
            del module.forward
        self.modules.clear()


def fuse_layers(model: nn.Module, *, everywhere: bool = False) -> FusedLayers:
    """Fuse what can be fused in a `transformers` decoder, with or without peft's LoRA.

    Args:
        model: its attention must have been registered by `capture.AttentionTap`.
        everywhere: see `FusedLayers`.
    """
    agreeing: dict[tuple[type, Any], bool] = {}
    fused = FusedLayers()  # everywhere, for the comparison
    for module in model.modules():
        kind, forward = _fused_forward(module)
        if forward is None:
            continue
        replacement = partial(forward, fused, module, module.forward)
        alike = (type(module), next(module.parameters()).shape)
        if alike not in agreeing:
            agreeing[alike] = _agrees(module, replacement)
            if not agreeing[alike]:
                _LOGGER.warning("%s does not compute what it used to: not fused", type(module))
        if agreeing[alike]:
            module.forward = replacement
            fused.modules[module] = kind
    fused.everywhere = everywhere
    return fused


def _fused_forward(module: nn.Module) -> tuple[str, Callable[..., Any] | None]:
    """Which kind of module this is, and its fused form; None: it has none."""
    home, name = type(module).__module__.split("."), type(module).__name__
    if home[:2] != ["transformers", "models"]:
        return "", None
    known = architecture_of_package(home[2])
    kind = _ENDINGS.get(name.removeprefix(home[2].capitalize()), "")
    forward: Callable[..., Any] | None = None
    if kind in known.fused and kind == "norm":
        forward = partial(_norm_forward, from_one=known.norms_from_one)
    elif kind in known.fused and not has_packed(module):
        if kind == "mlp" and module.config.hidden_act in ("silu", "swish"):
            forward = _mlp_forward
        elif kind == "attention" and _read_projections(module) is not None:
            forward = partial(_attention_forward, window_of=known.window_of)
    return kind, forward


def _norm_forward(
    fused: FusedLayers,
    module: Any,
    original: Callable[..., Any],
    hidden_states: Tensor,
    *,
    from_one: bool,
) -> Tensor:
    weight = module.weight
    if not (_runs(fused, hidden_states, weight) and not weight.requires_grad):
        return original(hidden_states)
    if from_one:
        precise = torch.promote_types(weight.dtype, torch.float32)
        return norm(hidden_states, 1.0 + weight.to(precise), module.eps)
    return norm(hidden_states, weight, module.variance_epsilon)


def _mlp_forward(
    fused: FusedLayers, module: Any, original: Callable[..., Any], x: Tensor
) -> Tensor:
    linears = (module.gate_proj, module.up_proj, module.down_proj)
    plain = all(_is_frozen(linear) and linear.bias is None for linear in linears)
    if not (plain and _runs(fused, x, linears[0].weight)):
        return original(x)
    return gated_mlp(x, *linears)


def _attention_forward(
    fused: FusedLayers,
    module: Any,
    original: Callable[..., Any],
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    attention_mask: Tensor | None = None,
    *,
    window_of: str,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    caches = {name: kwargs.pop(name) for name in _CACHES if name in kwargs}
    read = _read_projections(module)
    usable = read is not None and position_embeddings is not None
    usable = usable and all(cache is None for cache in caches.values())
    if usable:
        cos, sin = position_embeddings
        usable = cos.shape[-1] == module.head_dim and _runs(fused, hidden_states, read.frozen)
    if not usable:
        return original(
            hidden_states,
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            **caches,
            **kwargs,
        )
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    q, k, v = _shared(module, hidden_states, cos, sin, read)
    attend = ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation]
    output, weights = attend(
        module,
        q,
        k,
        v,
        attention_mask,
        dropout=module.attention_dropout if module.training else 0.0,
        scaling=module.scaling,
        **_window(module, window_of),
        **kwargs,
    )
    output = output.reshape(*hidden_states.shape[:-1], -1).contiguous()
    return module.o_proj(output), weights


def _window(module: Any, window_of: str) -> dict[str, Any]:
    """What an attention hands to the attention function beside its operands."""
    if not window_of:
        return {}
    holder = module.config if window_of == "config" else module
    return {"sliding_window": getattr(holder, "sliding_window", None)}


@dataclass
class _Read:
    """What an attention module's projections are now.

    Attributes:
        projections: of q, k and v, as they are to be applied.
        low_rank: what LoRA adds, or None.
        frozen: a weight in the precision of the products.
        original: whether this is the model before any training.
        shares: whether the trained model adds to the original's outputs.
    """

    projections: list[Projection]
    low_rank: LowRank | None
    frozen: Tensor
    original: bool
    shares: bool


@dataclass
class _Sharing:
    """What the original's pass leaves for the restored model's, layer by layer."""

    without_values: bool
    base: list[Tensor] | None = None


@contextlib.contextmanager
def sharing_projections(modules: Iterable[nn.Module], *, without_values: bool) -> Iterator[None]:
    """Attention modules that are called twice with the same input: without adapters, then with them.

    The second call takes the projections' own outputs from the first and adds LoRA alone. Modules that
    are not fused compute them again.

    Args:
        modules: attention modules.
        without_values: the second call's values need not be the restored model's.
    """
    modules = list(modules)
    for module in modules:
        module._sharing = _Sharing(without_values)
    try:
        yield
    finally:
        for module in modules:
            del module._sharing


def _shared(
    module: Any, x: Tensor, cos: Tensor, sin: Tensor, read: _Read
) -> tuple[Tensor, Tensor, Tensor]:
    sharing: _Sharing | None = getattr(module, "_sharing", None)
    projections, low_rank, width = read.projections, read.low_rank, module.head_dim
    if sharing is None:
        return project(x, projections, width, cos, sin, low_rank)
    if read.original:
        sharing.base = base_outputs(x, projections)
        heads = [y.view(*x.shape[:-1], -1, width) for y in sharing.base]
        q, k = (pointwise.rotate(y, cos, sin) for y in heads[:2])
        return q.transpose(1, 2), k.transpose(1, 2), heads[2].transpose(1, 2)
    base, sharing.base = sharing.base or [None] * 3, None
    if not read.shares:
        base[:2] = [None] * 2
    if not sharing.without_values:
        base[2] = base[2] if read.shares else None
    elif base[2] is not None and low_rank is not None:
        low_rank = replace(low_rank, a=(*low_rank.a[:2], None), b=(*low_rank.b[:2], None))
    return project(x, projections, width, cos, sin, low_rank, base)


def _runs(fused: FusedLayers, x: Tensor, weight: Tensor) -> bool:
    """Whether there is something to gain, in the precision that the module's own code would have."""
    if x.dtype != weight.dtype or x.device != weight.device:
        return False
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) != x.dtype:
        return False
    has_kernels = x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)
    return has_kernels or fused.everywhere


@torch.no_grad()
def _agrees(module: Any, replacement: Callable[..., Any]) -> bool:
    """Whether both compute the same on random numbers, up to the rounding of the weights' dtype."""
    read = _read_projections(module) if hasattr(module, "q_proj") else None
    weight = next(module.parameters()) if read is None else read.frozen
    if weight.device.type == "meta":
        return True
    make = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make).to(weight.device, weight.dtype)

    x, rest = draw(2, 9, weight.shape[-1]), {}
    if read is not None:
        angles = draw(1, 9, module.head_dim // 2).repeat(1, 1, 2)
        rest = {"position_embeddings": (angles.cos(), angles.sin()), "attention_mask": None}
    expected, got = module.forward(x, **rest), replacement(x, **rest)
    if rest:
        expected, got = expected[0], got[0]
    error = (got - expected).float().norm() / expected.float().norm()
    return bool(error < (1e-4 if weight.dtype == torch.float32 else 3e-2))


def _read_projections(module: Any) -> _Read | None:
    """What the projections of q, k and v are; None: something else than expected."""
    layers = [module.q_proj, module.k_proj, module.v_proj]
    if any(map(_has_hooks, layers)):
        return None
    if all(type(layer) is TwoViewLinear for layer in layers):
        original = layers[0].use_original
        found = [
            Projection(x.original_weight, x.original_bias)
            if original
            else Projection(x.weight, x.bias)
            for x in layers
        ]
        return _Read(found, None, layers[0].original_weight, original, shares=False)
    linears, adapters = [], []
    for layer in layers:
        if type(layer) is nn.Linear:
            linears.append(layer)
            continue
        adapter = _read_lora(layer)
        if adapter is None:
            return None
        linears.append(layer.base_layer)
        if not layer.disable_adapters:
            adapters.append(adapter)
    if not all(_is_frozen(linear) for linear in linears) or len(adapters) not in (0, 3):
        return None
    found, low_rank = [Projection(x.weight, x.bias) for x in linears], None
    if adapters:
        a, b, scalings, dropouts = zip(*adapters, strict=True)
        if len(set(dropouts)) > 1:
            return None
        low_rank = LowRank(a, b, scalings, dropouts[0])
    return _Read(found, low_rank, linears[0].weight, low_rank is None, shares=True)


def _read_lora(layer: Any) -> tuple[Tensor, Tensor, float, float] | None:
    """A, B, scaling and dropout of a plain LoRA layer of peft with one adapter."""
    from peft.tuners.lora.layer import Linear

    names = getattr(layer, "active_adapters", [])
    if type(layer) is not Linear or layer.merged or len(names) != 1 or layer.fan_in_fan_out:
        return None
    (name,) = names
    if name not in layer.lora_A or name in layer.lora_variant:
        return None
    down, up, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    if not all(type(x) is nn.Linear and x.bias is None for x in (down, up)):
        return None
    p = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
    return down.weight, up.weight, layer.scaling[name], p


def _is_frozen(linear: nn.Module) -> bool:
    return (
        type(linear) is nn.Linear
        and not any(p.requires_grad for p in linear.parameters(recurse=False))
        and not _has_hooks(linear)
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
