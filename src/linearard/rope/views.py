"""Native and stretched RoPE on one model: find the rotary modules, switch their tables, check them live.

A rotary module of `transformers` keeps `inv_freq` and `attention_scaling` (one pair, or one per layer
type with a prefix, as in Gemma 3). Switching a view replaces both; nothing else of the model changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from linearard.errors import ModelError, RopeError
from linearard.rope.scaling import (
    RopeTable,
    check_scaling,
    compute_table,
    depends_on_length,
    native_window,
    target_window,
)

View = Literal["native", "stretched"]
_SUFFIX = "inv_freq"


@dataclass
class _Slot:
    """One frequency table of one rotary module."""

    module: nn.Module
    prefix: str  # "" or "full_attention_"
    tables: dict[View, RopeTable] = field(default_factory=dict)
    on_device: dict[tuple[View, torch.device], Tensor] = field(default_factory=dict)

    @property
    def layer_type(self) -> str | None:
        return self.prefix[:-1] or None

    @property
    def live(self) -> RopeTable:
        buffer = getattr(self.module, self.prefix + _SUFFIX)
        scaling = getattr(self.module, self.prefix + "attention_scaling")
        return RopeTable(buffer.detach().float().cpu().clone(), float(scaling))


class RopeViews:
    """The two RoPE views of one model.

    Args:
        model: a `transformers` RoPE decoder with its native frequencies in place. It is left in the
            stretched view.
        scaling: see `check_scaling`. Layers of a sliding-window type (Gemma 3) keep native RoPE: their
            window does not grow.

    Raises:
        ModelError: the model has no rotary module this class can switch.
        RopeError: the scaling is invalid, or the live native frequencies are not the configuration's.
    """

    def __init__(self, model: nn.Module, scaling: dict[str, Any]) -> None:
        config = model.config.get_text_config()
        self.scaling = check_scaling(scaling, config)
        self.native_window = native_window(config, self.scaling)
        self.target_window = target_window(self.scaling, config)
        self.depends_on_length = depends_on_length(config)
        self._model = model
        self._slots = _find_slots(model)
        table = compute_table(self.scaling, config)
        for slot in self._slots:
            native = slot.live
            _check_native(slot, native, config)
            stretched = table if slot.layer_type in (None, "full_attention") else native
            if stretched.inv_freq.shape != native.inv_freq.shape:
                raise RopeError(
                    expected=f"{native.inv_freq.numel()} frequencies, as the model's rotary module has",
                    got=f"{stretched.inv_freq.numel()}",
                    fix="Check partial_rotary_factor or the length of the table.",
                )
            slot.tables = {"native": native, "stretched": stretched}
        if all(slot.tables["native"].same_as(slot.tables["stretched"]) for slot in self._slots):
            raise RopeError(
                expected="stretched frequencies that differ from the native ones",
                got="the same table twice",
                fix="Check rope.factor and the scaling's other parameters.",
            )
        self._rope_types = [_copy_rope_type(slot.module) for slot in self._slots]
        self._skip: tuple[int, int] | None = None
        self._native_types = {
            slot.layer_type
            for slot in self._slots
            if slot.layer_type not in (None, "full_attention")
        }
        for module in {slot.module for slot in self._slots}:
            module.register_forward_pre_hook(self._move_positions, with_kwargs=True)
        self.activate("stretched")

    def activate(self, view: View) -> None:
        """Put one view's tables into the rotary modules. Cheap: a few attribute assignments."""
        for slot, native_type in zip(self._slots, self._rope_types, strict=True):
            module, name = slot.module, slot.prefix + _SUFFIX
            device = getattr(module, name).device
            if (view, device) not in slot.on_device:
                # A copy: native "longrope" modules write into their buffer as the text grows.
                slot.on_device[view, device] = slot.tables[view].inv_freq.to(device, copy=True)
            setattr(module, name, slot.on_device[view, device])
            setattr(module, slot.prefix + "attention_scaling", slot.tables[view].attention_scaling)
            if native_type is not None:
                # "dynamic" and "longrope" modules rewrite their own table as the text grows: the
                # stretched view has one table, so it presents itself as "default".
                module.rope_type = native_type if view == "native" else _frozen_type(native_type)

    @contextlib.contextmanager
    def reordered(self, order: Tensor | None) -> Iterator[None]:
        """Rotate natively inside the block, each slot by the frequency of pair `order[slot]`."""
        self.activate("native")
        for slot in self._slots if order is not None else ():
            live = getattr(slot.module, slot.prefix + _SUFFIX)
            setattr(slot.module, slot.prefix + _SUFFIX, live[order.to(live.device)])
        try:
            yield
        finally:
            self.activate("stretched")

    @contextlib.contextmanager
    def skipping(self, start: int, distance: int) -> Iterator[None]:
        """Rotate every token from position `start` on as if it stood `distance` further.

        Layers that keep native RoPE (sliding windows) keep their positions too. Only the rotation
        knows: masks still see consecutive positions, so that no code takes the jump for the border
        between two packed texts.
        """
        self._skip = (start, distance)
        try:
            yield
        finally:
            self._skip = None

    @contextlib.contextmanager
    def pairing(self) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
        """Form the stretched rotation beside each native one, in the native view.

        Yields:
            By `id` of a native cosine tensor that the model gets inside the block: cosine and sine of
            the stretched view, for the same positions.
        """
        found: dict[int, tuple[Tensor, Tensor]] = {}
        kept = []  # an id is only one's own as long as one lives

        def pair(module: nn.Module, args: Any, kwargs: dict[str, Any], native: Any) -> None:
            self.activate("stretched")
            try:
                found[id(native[0])] = module.forward(*args, **kwargs)
            finally:
                self.activate("native")
            kept.append(native)

        modules = {slot.module for slot in self._slots}
        handles = [module.register_forward_hook(pair, with_kwargs=True) for module in modules]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def _move_positions(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        given = {*args[2:], kwargs.get("layer_type")}
        if self._skip is None or given & self._native_types:
            return None
        start, distance = self._skip
        if "position_ids" in kwargs:
            positions = kwargs["position_ids"]
            return args, kwargs | {"position_ids": positions + distance * (positions >= start)}
        x, positions, *rest = args
        return (x, positions + distance * (positions >= start), *rest), kwargs

    def tables(self, view: View) -> dict[str, RopeTable]:
        """Tables by layer type; the key is `""` where the model has one table for all layers."""
        return {slot.layer_type or "": slot.tables[view] for slot in self._slots}

    def check(self) -> None:
        """Run every rotary module in both views and compare with the tables; ends in the stretched view.

        Raises:
            RopeError: a live module rotates by other angles, or other code replaced it.
        """
        modules = set(self._model.modules())
        if any(slot.module not in modules for slot in self._slots):
            raise RopeError(
                expected="the rotary modules that the model was loaded with",
                got="another one in their place",
                fix="Do not replace or cast the rotary module after the views were made.",
            )
        for view in ("native", "stretched"):
            self.activate(view)
            for slot in self._slots:
                _check_rotation(slot, view)


def _find_slots(model: nn.Module) -> list[_Slot]:
    slots = []
    for module in model.modules():
        if not hasattr(module, "rope_type") or not isinstance(module, nn.Module):
            continue
        names = [name for name, _ in module.named_buffers(recurse=False)]
        for name in names:
            if name.endswith(_SUFFIX) and "original" not in name and "long_" not in name:
                slots.append(_Slot(module, name[: -len(_SUFFIX)]))
    if not slots:
        raise ModelError(
            expected="a decoder with a rotary embedding module (inv_freq, attention_scaling)",
            got=type(model).__name__,
            fix="Choose a RoPE decoder such as Llama, Mistral, Qwen, OLMo2 or Gemma.",
        )
    return slots


def _check_native(slot: _Slot, live: RopeTable, config: Any) -> None:
    fresh_module = type(slot.module)(config=config)
    fresh = _Slot(fresh_module, slot.prefix).live
    if not live.same_as(fresh):
        raise RopeError(
            expected="the native frequencies of the model's configuration in its rotary module",
            got=f"other ones (largest live {live.inv_freq.max():.6g}, configured {fresh.inv_freq.max():.6g})",
            fix="Load the model afresh; casting a whole model with .to(dtype) rounds its frequencies.",
        )


def _check_rotation(slot: _Slot, view: View) -> None:
    table = slot.tables[view]
    device = getattr(slot.module, slot.prefix + _SUFFIX).device
    positions = torch.tensor([[0, 1, 2, 17, 101]], device=device)
    kwargs = {"layer_type": slot.layer_type} if slot.layer_type else {}
    x = torch.zeros(1, 1, 1, device=device, dtype=torch.float32)
    cos, sin = slot.module(x, positions, **kwargs)
    angles = positions[0].double().cpu()[:, None] * table.inv_freq.double()
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


def _copy_rope_type(module: nn.Module) -> Any:
    kind = module.rope_type
    return dict(kind) if isinstance(kind, dict) else kind


def _frozen_type(kind: Any) -> Any:
    return dict.fromkeys(kind, "default") if isinstance(kind, dict) else "default"
