"""Native and stretched RoPE on one model: find the rotary modules, switch their tables, check them live.

A rotary module of `transformers` keeps `inv_freq` and `attention_scaling` (one pair, or one per layer
type with a prefix, as in Gemma 3). Switching a view replaces both, and the softmax scale of the few models
that draw it from their RoPE; nothing else of the model changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from linearard.errors import RopeError
from linearard.rope.judge import check_slower
from linearard.rope.layers import slots_to_stretch
from linearard.rope.native import carried_keys, depends_on_length, native_window
from linearard.rope.scaling import check_scaling, compute_table, target_window
from linearard.rope.slots import View, check_rotation, find_slots
from linearard.rope.softmax import SoftmaxScales
from linearard.rope.table import RopeTable, native_table


class RopeViews:
    """The two RoPE views of one model.

    Args:
        model: a `transformers` RoPE decoder with its native frequencies in place. It is left in the
            stretched view.
        scaling: see `check_scaling`. Layers with a sliding window keep native RoPE where others see the
            whole text (Gemma 3): their window does not grow.

    Attributes:
        scaling: complete, as `check_scaling` gives it.
        native_window, target_window: tokens.
        carried: keys of the model's `rope_parameters` that every exported form must keep.
        depends_on_length: whether the native table changes as the text grows.

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
        self.carried = carried_keys(config)
        self._model = model
        self._slots = find_slots(model, config)
        table = compute_table(self.scaling, config)
        stretched = slots_to_stretch(model, self._slots, config)
        for slot in self._slots:
            native = slot.tables["native"]
            slot.tables["stretched"] = table if slot in stretched else native
            if slot not in stretched:
                continue
            if table.inv_freq.shape != native.inv_freq.shape:
                raise RopeError(
                    expected=f"{native.inv_freq.numel()} frequencies, as the model's rotary module has",
                    got=f"{table.inv_freq.numel()}",
                    fix="Check partial_rotary_factor or the length of the table.",
                )
            if scaling.get("rope_type", scaling.get("type")) != "table":
                _check_formula(native, config)
            # natively, longrope's module holds the table of short text: `check_scaling` has judged
            if slot.rope_type != "longrope":
                check_slower(native, table)
        self._softmax = SoftmaxScales(model, self.scaling, config)
        self._rope_types = [_copy_rope_type(slot.module) for slot in self._slots]
        self._skip: tuple[int, int] | None = None
        self._native_types = {
            slot.layer_type
            for slot in self._slots
            if slot.layer_type is not None and slot not in stretched
        }
        for module in {slot.module for slot in self._slots}:
            module.register_forward_pre_hook(self._move_positions, with_kwargs=True)
        self.activate("stretched")

    def activate(self, view: View) -> None:
        """Put one view's tables into the rotary modules. Cheap: a few attribute assignments."""
        for slot, native_type in zip(self._slots, self._rope_types, strict=True):
            slot.put(view)
            if native_type is not None:
                # "dynamic" and "longrope" modules rewrite their own table as the text grows: the
                # stretched view has one table, so it presents itself as "default".
                slot.module.rope_type = (
                    native_type if view == "native" else _frozen_type(native_type)
                )
        self._softmax.put(view)

    @contextlib.contextmanager
    def reordered(self, order: Tensor | None) -> Iterator[None]:
        """Rotate natively inside the block, each slot by the frequency of pair `order[slot]`."""
        self.activate("native")
        for slot in self._slots if order is not None else ():
            live = getattr(slot.module, slot.name)
            setattr(slot.module, slot.name, live[order.to(live.device)])
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

    def softmax_scales(self, view: View) -> dict[int, float]:
        """Factor on attention scores by layer; the same in both views of most models."""
        return self._softmax.of(view)

    def check(self) -> None:
        """Run every rotary module in both views and compare with the tables; ends in the stretched view.

        Raises:
            RopeError: a live module rotates by other angles, or other code replaced it.
        """
        modules = set(self._model.modules())
        empty = any(parameter.is_meta for parameter in self._model.parameters())
        if not empty and any(slot.module not in modules for slot in self._slots):
            raise RopeError(
                expected="the rotary modules that the model was loaded with",
                got="another one in their place",
                fix="Do not replace or cast the rotary module after the views were made.",
            )
        for view in ("native", "stretched"):
            self.activate(view)
            for slot in self._slots:
                check_rotation(slot, view)


def _check_formula(live: RopeTable, config: Any) -> None:
    """Refuse formulas over frequencies that do not follow the formula of their own configuration.

    HunYuan's `alpha` makes them others than those of the type that its configuration names.
    """
    if not live.same_as(native_table(config, tokens=1)):
        raise RopeError(
            expected="native frequencies that follow the formula which the model's configuration names",
            got="others in its rotary module",
            fix="Give an explicit table (rope.rope_type table, with rope.inv_freq).",
        )


def _copy_rope_type(module: nn.Module) -> Any:
    kind = module.rope_type
    return dict(kind) if isinstance(kind, dict) else kind


def _frozen_type(kind: Any) -> Any:
    return dict.fromkeys(kind, "default") if isinstance(kind, dict) else "default"
