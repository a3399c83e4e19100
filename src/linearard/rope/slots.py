"""The frequency tables in a model's rotary modules: find them, and check what lives there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from linearard.errors import ModelError, RopeError
from linearard.rope.native import ORIGINAL
from linearard.rope.table import RopeTable

View = Literal["native", "stretched"]
_SUFFIX = "inv_freq"
_POSITIONS = (0, 1, 2, 17, 101)


@dataclass(eq=False)
class Slot:
    """One frequency table of one rotary module."""

    module: nn.Module
    prefix: str  # "" or "full_attention_"
    tables: dict[View, RopeTable] = field(default_factory=dict)
    on_device: dict[tuple[View, torch.device], Tensor] = field(default_factory=dict)

    @property
    def layer_type(self) -> str | None:
        """The type of the layers that it is for; None: all."""
        return self.prefix[:-1] or None

    @property
    def rope_type(self) -> str:
        """Of its formula, as the module is now."""
        kind = self.module.rope_type
        return kind[self.layer_type] if isinstance(kind, dict) else kind

    @property
    def name(self) -> str:
        """Of the buffer."""
        return self.prefix + _SUFFIX

    @property
    def live(self) -> RopeTable:
        """The table that is in the module."""
        scaling = getattr(self.module, self.prefix + "attention_scaling")
        buffer = getattr(self.module, self.name)
        return RopeTable(buffer.detach().float().cpu().clone(), float(scaling))

    def put(self, view: View) -> None:
        """Let the module rotate by a view's table."""
        device = getattr(self.module, self.name).device
        if (view, device) not in self.on_device:
            # A copy: native "longrope" modules write into their buffer as the text grows.
            self.on_device[view, device] = self.tables[view].inv_freq.to(device, copy=True)
        setattr(self.module, self.name, self.on_device[view, device])
        setattr(self.module, self.prefix + "attention_scaling", self.tables[view].attention_scaling)


def find_slots(model: nn.Module, config: Any) -> list[Slot]:
    """The tables of the language model, each with its native one; not those of a vision tower.

    Args:
        model: a `transformers` decoder, or a model with one inside; without weights (on the `meta`
            device) fresh modules with numbers in them stand for its own.
        config: its text configuration.

    Raises:
        ModelError: there are none, or they rotate in a way that cannot be switched.
        RopeError: the live native frequencies are not the configuration's.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    slots = _slots_in(decoder) or _slots_in(model)
    if not slots:
        raise ModelError(
            expected="a decoder with a rotary embedding module (inv_freq, attention_scaling)",
            got=type(model).__name__,
            fix="Choose a RoPE decoder such as Llama, Mistral, Qwen, OLMo2 or Gemma.",
        )
    for slot in slots:
        other, fresh = _fresh(slot, config)
        if getattr(slot.module, slot.name).device.type == "meta":
            slot.module, slot.tables["native"] = other, fresh
            continue
        native = slot.live
        if not native.same_as(fresh):
            raise RopeError(
                expected="the native frequencies of the model's configuration in its rotary module",
                got=f"other ones (largest live {native.inv_freq.max():.6g}, "
                f"configured {fresh.inv_freq.max():.6g})",
                fix="Load the model afresh; casting a whole model with .to(dtype) rounds its frequencies.",
            )
        slot.tables["native"] = native
    return slots


def _slots_in(model: Any) -> list[Slot]:
    slots = []
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if not hasattr(module, "rope_type"):
            continue
        for name, _ in module.named_buffers(recurse=False):
            if name.endswith(_SUFFIX) and "original" not in name and "long_" not in name:
                slots.append(Slot(module, name[: -len(_SUFFIX)]))
    return slots


def _fresh(slot: Slot, config: Any) -> tuple[nn.Module, RopeTable]:
    """Another module of this kind, on the CPU, which shows that it gives cosine and sine; its table."""
    kind = type(slot.module)
    try:
        module = kind(config=config)
        fresh = Slot(module, slot.prefix)
        table = fresh.live
        cos, sin = _rotate(fresh, torch.device("cpu"))
        good = isinstance(cos, Tensor) and isinstance(sin, Tensor)
        good = good and not (cos.is_complex() or sin.is_complex())
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError):
        good = False
    if not good:
        raise ModelError(
            expected="a rotary module that gives cosine and sine of each position",
            got=f"{kind.__name__}, which rotates in another way",
            fix="Choose a RoPE decoder such as Llama, Mistral, Qwen, OLMo2 or Gemma.",
        )
    return module, table


def _rotate(slot: Slot, device: torch.device) -> tuple[Tensor, Tensor]:
    kwargs = {"layer_type": slot.layer_type} if slot.layer_type else {}
    positions = torch.tensor([_positions(slot)], device=device)
    x = torch.zeros(1, 1, 1, device=device, dtype=torch.float32)
    cos, sin = slot.module(x, positions, **kwargs)
    return cos, sin


def _positions(slot: Slot) -> list[int]:
    """Those to look at: beyond a window, `longrope` and `dynamic` modules take another table."""
    config = slot.module.config
    if slot.rope_type == "longrope":
        window = (config.rope_parameters.get(slot.layer_type) or config.rope_parameters)[ORIGINAL]
    else:
        window = config.max_position_embeddings
    return [position for position in _POSITIONS if position < window]


def check_rotation(slot: Slot, view: View) -> None:
    """Run a module and compare its cosines and sines with those of the view's table.

    Raises:
        RopeError: it rotates by other angles.
    """
    table = slot.tables[view]
    cos, sin = _rotate(slot, getattr(slot.module, slot.name).device)
    angles = torch.tensor(_positions(slot)).double()[:, None] * table.inv_freq.double()
    for live, expected in ((cos, angles.cos()), (sin, angles.sin())):
        expected = expected * table.attention_scaling
        live = live[0].double().cpu()
        # Pairs lie half a head apart in most models, side by side in a few (Cohere).
        layouts = (live[:, : expected.shape[-1]], live[:, 0::2])
        if not any(
            layout.shape == expected.shape and (layout - expected).abs().max() < 1e-4
            for layout in layouts
        ):
            raise RopeError(
                expected=f"the model to rotate by its {view} RoPE table",
                got="other angles from the live rotary module",
                fix="Do not replace or cast the rotary module after the views were made.",
            )
