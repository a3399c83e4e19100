"""Which layers a scaling is for: those whose attention rotates and sees the whole text."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from linearard.architectures import WINDOWED
from linearard.rope.native import nothing_to_stretch
from linearard.rope.slots import Slot


def slots_to_stretch(model: nn.Module, slots: list[Slot], config: Any) -> list[Slot]:
    """The tables of layers that see the whole text.

    Where some layers have a sliding window and others have not, a table stays native if only those with a
    window rotate by it (Cohere 2, EXAONE 4, AFMoE; by layer type in Gemma 3): their window does not grow.
    A model all of whose layers have one (Mistral) is stretched as its user asks.

    Raises:
        RopeError: none is left.
    """
    windowed = _windowed_layers(model, config)
    mixed = 0 < len(windowed) < config.num_hidden_layers
    types = set(getattr(config, "layer_types", None) or ())
    found = []
    for slot in slots:
        if slot.layer_type is not None:
            unused = types and slot.layer_type not in types
            wanted = slot.layer_type not in WINDOWED and not unused
        else:
            wanted = not mixed or _rotates_without_window(model, slot, windowed)
        if wanted:
            found.append(slot)
    if not found:
        raise nothing_to_stretch(config)
    return found


def attention_modules(model: nn.Module) -> dict[int, nn.Module]:
    """By layer, the modules of the decoder that are handed rotations."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    if not isinstance(decoder, nn.Module):
        decoder = model
    return {
        module.layer_idx: module
        for module in decoder.modules()
        if isinstance(getattr(module, "layer_idx", None), int)
        and "position_embeddings" in inspect.signature(module.forward).parameters
        and hasattr(module, "scaling")
    }


def _windowed_layers(model: nn.Module, config: Any) -> set[int]:
    types = getattr(config, "layer_types", None)
    if types:
        return {layer for layer, kind in enumerate(types) if kind in WINDOWED}
    return {
        layer
        for layer, module in attention_modules(model).items()
        if getattr(module, "sliding_window", None) is not None
    }


def _rotates_without_window(model: nn.Module, slot: Slot, windowed: set[int]) -> bool:
    modules = attention_modules(model)
    return any(_rotates(modules[layer], slot) for layer in modules.keys() - windowed)


def _rotates(module: nn.Module, slot: Slot) -> bool:
    """Whether the output of an attention depends on the rotations that it is given.

    The module is asked, because configurations do not say: gradients reach the rotations or they do not.
    It needs no weights. One that cannot be asked is taken to rotate, as most do.
    """
    # A matrix tells what the layer computes in; sinks and norms may be float32 beside it.
    parameters = list(module.parameters())
    weight = next((p for p in parameters if p.ndim > 1), parameters[0])
    dtype = weight.dtype if weight.is_floating_point() else torch.bfloat16
    like = {"device": weight.device, "dtype": dtype}
    width = 2 * slot.tables["native"].inv_freq.numel()
    rotations = tuple(torch.ones(1, 2, width, requires_grad=True, **like) for _ in range(2))
    hidden = torch.zeros(1, 2, module.config.hidden_size, **like)
    try:
        with torch.enable_grad():
            output = module(
                hidden_states=hidden, position_embeddings=rotations, attention_mask=None
            )[0]
            found = torch.autograd.grad(output.sum(), rotations, allow_unused=True)
    except RuntimeError as error:
        return "does not require grad" not in str(error)
    except (TypeError, ValueError, AttributeError, KeyError):
        return True
    return any(gradient is not None for gradient in found)
