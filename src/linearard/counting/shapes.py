"""The sizes of a model and its adapter, read off a copy without weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from linearard.architectures import HEAD_NORMS, PROJECTIONS
from linearard.capture import AttentionTap, needs_no_mask
from linearard.counting.experts import expert_matrices
from linearard.errors import ModelError
from linearard.model import AdapterConfig, empty_model
from linearard.model.adapters import Adapter, TwoViewLinear
from linearard.model.fused import fuse_layers
from linearard.rope import depends_on_length

_ROLES = {name: role for names in PROJECTIONS for name, role in names.items() if role}


@dataclass(frozen=True)
class Projection:
    """One linear layer of a decoder layer.

    Attributes:
        role: what it makes: `q`, `k`, `v`, `qkv`, `attention output`, `mlp in` or `mlp out`.
        inputs, outputs: features.
        trained: whether the adapter changes it.
        packs: whether `model.load_in_4bit` packs it, which leaves experts as they are.
    """

    role: str
    inputs: int
    outputs: int
    trained: bool
    packs: bool = True

    @property
    def feeds_attention(self) -> bool:
        """Whether its output is (part of) q, k or v."""
        return self.role in ("q", "k", "v", "qkv")

    def adapter_weights(self, rank: int) -> int:
        """Weights that are trained if this projection is: LoRA's two factors, or (rank 0) itself."""
        return rank * (self.inputs + self.outputs) if rank else self.inputs * self.outputs


@dataclass(frozen=True)
class Norms:
    """Features that the norms of a decoder layer read of a token.

    Attributes:
        before: of the norm before the attention; 0: there is none (OLMo 2).
        heads: of those of queries and keys (Qwen3, Gemma 3, OLMo 2).
        behind: of those behind the attention: of its output, and before and behind the MLP.
    """

    before: int
    heads: int
    behind: int


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer.

    Attributes:
        projections: its linear layers, in the order in which a forward pass runs them.
        heads, kv_heads, head_dim: of its attention.
        window: how many tokens back a query sees, itself included; None: all.
        norms: features that its norms read of a token.
    """

    projections: tuple[Projection, ...]
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    norms: Norms

    @property
    def joined(self) -> bool:
        """Whether one projection makes q, k and v (Phi-3)."""
        return any(projection.role == "qkv" for projection in self.projections)

    def relation_heads(self, relation: str) -> int:
        """Heads of a relation: `q`, `k`, `v` or `qk`."""
        return self.heads if relation in ("q", "qk") else self.kv_heads


@dataclass(frozen=True)
class ModelShape:
    """What a step of a model costs depends on this.

    Attributes:
        layers: its decoder layers.
        hidden, intermediate, vocab: features of the hidden states, inside the MLP, and of logits.
        tied: whether the LM head is the embedding.
        base_parameters: of the model as it is loaded.
        trained_parameters: float32, of the adapter.
        frozen_copies: of direct training: originals kept beside the trained matrices.
        tensors: number of trained tensors.
        rank, dropout: of LoRA; 0 in direct training.
        fused: which of `norm`, `attention` and `mlp` has a fused form (`model.fused`), which runs on GPUs in
            half precision.
        steady: whether batches of whole windows are the same kernels every time: no mask is made for them,
            and no RoPE depends on their length.
    """

    layers: tuple[LayerShape, ...]
    hidden: int
    intermediate: int
    vocab: int
    tied: bool
    base_parameters: int
    trained_parameters: int
    frozen_copies: int
    tensors: int
    rank: int
    dropout: float
    fused: frozenset[str]
    steady: bool

    @cached_property
    def packable(self) -> int:
        """Base weights that `model.load_in_4bit` packs: of the decoder's linear layers."""
        every = (projection for layer in self.layers for projection in layer.projections)
        return sum(p.inputs * p.outputs for p in every if p.packs)

    def with_lora(self, rank: int, dropout: float) -> ModelShape:
        """The same model and trained projections under LoRA of another rank.

        Both factors of a projection grow with the rank: r (inputs + outputs) weights.
        """
        trained = self.trained_parameters // self.rank * rank
        return replace(self, rank=rank, trained_parameters=trained, dropout=dropout)

    @classmethod
    def of(cls, config: Any, adapter: AdapterConfig) -> ModelShape:
        """Read the sizes off a model on the `meta` device; takes no memory and a fraction of a second.

        Args:
            config: a `transformers` configuration; it is left as it is.
            adapter: what is trained.

        Raises:
            ModelError: no causal language model, or one whose layers are of an unknown kind.
        """
        model = empty_model(config.get_text_config())
        config = model.config
        base = sum(p.numel() for p in model.parameters())
        tap = AttentionTap(model)  # as in a run: it decides which attention runs
        with torch.device("meta"):
            trained = Adapter(model, adapter, tap.modules.values())
        parameters = trained.parameters()
        lora = adapter.kind == "lora"
        attention = set(map(id, tap.modules.values()))
        layers = tuple(
            _layer(module, config, window, attention)
            for module, window in zip(model.get_decoder().layers, _windows(config), strict=True)
        )
        return cls(
            layers=layers,
            hidden=config.hidden_size,
            intermediate=_intermediate(layers, config),
            vocab=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
            base_parameters=base,
            trained_parameters=sum(p.numel() for p in parameters),
            frozen_copies=0 if lora else sum(p.numel() for p in parameters),
            tensors=len(parameters),
            rank=adapter.r if lora else 0,
            dropout=adapter.dropout if lora else 0.0,
            fused=frozenset(fuse_layers(model.get_decoder().layers).modules.values()),
            steady=needs_no_mask(model) and not depends_on_length(config),
        )


def _windows(config: Any) -> list[int | None]:
    """Sliding window of each layer, as the architecture itself reads its configuration."""
    count, window = config.num_hidden_layers, getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        return [window] * count
    return [window if kind == "sliding_attention" else None for kind in types]


def _layer(module: nn.Module, config: Any, window: int | None, attention: set[int]) -> LayerShape:
    inside = {
        id(inner) for part in module.modules() if id(part) in attention for inner in part.modules()
    }
    found = [
        _projection(name.rsplit(".", 1)[-1], part, config.hidden_size, id(part) not in inside)
        for name, part in module.named_modules()
        if isinstance(part, TwoViewLinear) or _is_base(name, part)
    ]
    found += [
        Projection("mlp in" if leads_in else "mlp out", inputs, outputs, trained=False, packs=False)
        for inputs, outputs, leads_in in expert_matrices(module, config)
    ]
    order = ("q", "k", "v", "qkv", "attention output", "mlp in", "mlp out")
    found.sort(key=lambda projection: order.index(projection.role))
    roles = {projection.role for projection in found}
    if not {"attention output", "mlp in", "mlp out"} <= roles or not roles & {"q", "qkv"}:
        raise ModelError(
            expected="decoder layers of attention and an MLP or experts, made of linear layers",
            got=f"a {type(module).__name__} with {', '.join(sorted(roles)) or 'none'}",
            fix="Plan another model; this one can only be measured.",
        )
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return LayerShape(
        projections=tuple(found),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        window=window,
        norms=_norms(module, heads, kv_heads, head_dim),
    )


def _norms(module: nn.Module, heads: int, kv_heads: int, head_dim: int) -> Norms:
    before = in_heads = behind = 0
    for path, part in module.named_modules():
        weight = getattr(part, "weight", None)
        if not type(part).__name__.endswith("Norm") or weight is None:
            continue
        name, width = path.rsplit(".", 1)[-1], weight.numel()
        if name in HEAD_NORMS:  # of every head alone, or (OLMo 2) of all of them
            count = heads if name.startswith("q") else kv_heads
            in_heads += width * count if width == head_dim else width
        elif before or name.startswith(("post", "pre_feedforward")):
            behind += width
        else:
            before = width
    return Norms(before, in_heads, behind)


def _is_base(name: str, part: nn.Module) -> bool:
    """Whether this is a linear layer of the model itself: plain, or one that carries LoRA."""
    inside_lora = any(word in name for word in ("base_layer", "lora_"))
    return not inside_lora and (isinstance(part, nn.Linear) or hasattr(part, "lora_A"))


def _projection(name: str, part: Any, hidden: int, in_mlp: bool) -> Projection:
    role = None if in_mlp else _ROLES.get(name)
    if role is None and not in_mlp:
        role = "attention output"
    elif role is None:
        role = "mlp in" if part.in_features == hidden and "down" not in name else "mlp out"
    trained = isinstance(part, TwoViewLinear) or hasattr(part, "lora_A")
    return Projection(role, part.in_features, part.out_features, trained)


def _intermediate(layers: tuple[LayerShape, ...], config: Any) -> int:
    widths = [sum(p.inputs for p in layer.projections if p.role == "mlp out") for layer in layers]
    return max(widths, default=getattr(config, "intermediate_size", 0))
