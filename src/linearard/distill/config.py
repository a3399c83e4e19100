"""Which terms make up a training loss, and how they are weighed."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from linearard.errors import RecipeError
from linearard.fields import described
from linearard.ops.relation_kl import IMPLEMENTATIONS

RELATIONS = ("q", "k", "v", "qk")


@dataclass
class ObjectiveConfig:
    """A weighted sum of relation terms, logit KL and the language-model loss."""

    relations: dict[str, float] = described(
        lambda: {"q": 1.0, "k": 1.0, "v": 1.0},
        "Weight of each relation: q, k, v (self-relations of the paper) and qk (the causal attention "
        "distribution). Empty: no relation loss.",
    )
    inputs: str = described(
        "own",
        "own: the student reads its own hidden states, gradients run through depth (the paper); "
        "teacher: each student layer reads the teacher's, for little more than the teacher's forward.",
    )
    layers: list[int] | None = described(
        None, "Layers whose relations count, -1 the last; null: all."
    )
    layer_weights: list[float] | None = described(
        None, "One weight per counted layer; null: equal. They are normalised to sum 1."
    )
    normalisation: str = described(
        "own",
        "own: mean over the relation's own heads; paper: divide by the number of query heads.",
    )
    temperature: float = described(1.0, "Divides teacher and student scores.")
    logit_weight: float = described(0.0, "Weight of KL between output distributions.")
    logit_positions: int | None = described(
        512, "Logit KL reads the last this many positions (the paper's 512); null: all."
    )
    teacher_window: int | None = described(
        None,
        "Logit KL of windows longer than this: the teacher reads them in windows of this many tokens "
        "that overlap by half; null: the native window.",
    )
    hidden_weight: float = described(
        0.0, "Weight of the squared distance of hidden states, relative to the teacher's size."
    )
    hidden_layers: list[int] | None = described(
        None, "Layers whose output the hidden term compares, -1 the last; null: all."
    )
    skip_positions: bool = described(
        False,
        "The student reads each window with a random jump in its positions, up to the stretched "
        "window; the teacher reads it as it is.",
    )
    lm_weight: float = described(0.0, "Weight of the next-token cross-entropy.")
    recall_weight: float = described(
        0.0,
        "Weight of the next-token cross-entropy on repeated passages alone (`data.recall`), which "
        "logit KL then leaves out: for windows in which the teacher cannot see so far back.",
    )
    implementation: str | None = described(
        None, "Relation KL: reference, chunked, triton or hopper; null: the fastest for the device."
    )

    def __post_init__(self) -> None:
        if not isinstance(self.relations or {}, dict):
            _refuse("relations", "weights by name, such as {q: 1, k: 1, v: 1}", self.relations)
        self.relations = dict(self.relations or {})
        for name, weight in self.relations.items():
            if name not in RELATIONS:
                close = difflib.get_close_matches(str(name), RELATIONS, n=1)
                _refuse(
                    "relations",
                    f"names among {', '.join(RELATIONS)}",
                    name,
                    f"Did you mean {close[0]!r}?" if close else "",
                )
            _check_weight(f"relations.{name}", weight)
        for name in ("logit_weight", "hidden_weight", "lm_weight", "recall_weight"):
            _check_weight(name, getattr(self, name))
        if self.normalisation not in ("own", "paper"):
            _refuse("normalisation", "own or paper", self.normalisation)
        if not _is_number(self.temperature) or not 0 < self.temperature < float("inf"):
            _refuse("temperature", "a positive number", self.temperature)
        positions = self.logit_positions
        if positions is not None and (not isinstance(positions, int) or positions < 1):
            _refuse("logit_positions", "a positive integer or null", positions)
        window = self.teacher_window
        if window is not None:
            if type(window) is not int or window < 2 or window % 2:
                _refuse("teacher_window", "null or an even number of tokens", window)
            if not self.logit_weight or self.active_relations or self.hidden_weight:
                _refuse(
                    "teacher_window",
                    "null where other terms than logit KL read the teacher",
                    window,
                    "A teacher that reads in windows gives output distributions only.",
                )
        if not isinstance(self.skip_positions, bool):
            _refuse("skip_positions", "true or false", self.skip_positions)
        if self.skip_positions and (self.lm_weight or self.recall_weight or not self.needs_teacher):
            _refuse(
                "skip_positions",
                "false beside a language-model loss, or without a teacher",
                True,
                "Put the language-model loss into another part or stage.",
            )
        if self.implementation not in (None, *IMPLEMENTATIONS):
            _refuse("implementation", f"{', '.join(IMPLEMENTATIONS)} or null", self.implementation)
        for name in ("layers", "hidden_layers"):
            layers = getattr(self, name)
            indices = isinstance(layers, list) and all(type(i) is int for i in layers)
            distinct = indices and layers and len(set(layers)) == len(layers)
            if layers is not None and not distinct:
                _refuse(name, "a list of distinct layer indices", layers)
        layers, weights = self.layers, self.layer_weights
        if weights is not None:
            if not isinstance(weights, list) or not all(map(_is_weight, weights)):
                _refuse("layer_weights", "a list of weights >= 0", weights)
            if layers is not None and len(weights) != len(layers):
                _refuse("layer_weights", f"{len(layers)} weights, one a layer", weights)
            if not sum(weights) > 0:
                _refuse("layer_weights", "weights with a positive sum", weights)
        if self.inputs not in ("own", "teacher"):
            _refuse("inputs", "own or teacher", self.inputs)
        if self.inputs == "teacher" and (
            not self.active_relations
            or self.needs_output
            or self.hidden_weight
            or self.skip_positions
        ):
            _refuse(
                "inputs",
                "own where other terms than relations count, or positions are skipped",
                self.inputs,
                "With the teacher's inputs, the student runs no further than its attention.",
            )
        if not (self.needs_teacher or self.needs_output):
            raise RecipeError(
                expected="an objective with at least one weight above 0",
                got="none",
                fix="Set relations, logit_weight, hidden_weight, lm_weight or recall_weight.",
            )

    @property
    def active_relations(self) -> dict[str, float]:
        """Relations with a weight above zero."""
        return {name: weight for name, weight in self.relations.items() if weight}

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with the original model."""
        return bool(self.active_relations) or self.logit_weight > 0 or self.hidden_weight > 0

    @property
    def needs_output(self) -> bool:
        """Whether any term reads the model's output distributions."""
        return self.logit_weight > 0 or self.lm_weight > 0 or self.recall_weight > 0

    @property
    def needs_native_window(self) -> bool:
        """Whether the teacher must read a window as one: logit KL alone lets it read in pieces."""
        return bool(self.active_relations) or self.hidden_weight > 0 or self.skip_positions

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each active term, by the name that logs have for it."""
        weights = {f"relation_{name}": w for name, w in self.active_relations.items()}
        weights |= {"logit_kl": self.logit_weight, "hidden": self.hidden_weight}
        weights |= {"lm": self.lm_weight, "recall": self.recall_weight}
        return {name: w for name, w in weights.items() if w}

    def weights_by_layer(self, num_layers: int) -> dict[int, float]:
        """Normalised weight of each counted layer.

        Raises:
            RecipeError: a layer the model does not have, or a wrong number of weights.
        """
        layers = _layers_of(num_layers, "layers", self.layers)
        weights = self.layer_weights or [1.0] * len(layers)
        if len(weights) != len(layers):
            _refuse("layer_weights", f"{len(layers)} weights, one a layer", f"{len(weights)}")
        total = sum(weights)
        return {
            layer: weight / total for layer, weight in zip(layers, weights, strict=True) if weight
        }

    def compared_layers(self, num_layers: int) -> list[int]:
        """Layers of the hidden term, in order; empty where it is off.

        Raises:
            RecipeError: a layer the model does not have.
        """
        return (
            sorted(_layers_of(num_layers, "hidden_layers", self.hidden_layers))
            if self.hidden_weight
            else []
        )


def _layers_of(num_layers: int, name: str, layers: list[int] | None) -> list[int]:
    """Indices from 0 on, of which negative ones count back from the end."""
    layers = list(range(num_layers)) if layers is None else layers
    outside = [layer for layer in layers if not -num_layers <= layer < num_layers]
    if outside:
        _refuse(name, f"indices from {-num_layers} to {num_layers - 1}", outside)
    counted = [layer % num_layers for layer in layers]
    if len(set(counted)) < len(counted):
        _refuse(name, "a list of distinct layers", layers)
    return counted


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_weight(value: Any) -> bool:
    return _is_number(value) and 0 <= value < float("inf")


def _check_weight(name: str, value: Any) -> None:
    if not _is_weight(value):
        _refuse(name, "a weight >= 0", value)


def _refuse(name: str, expected: str, got: Any, fix: str = "") -> None:
    raise RecipeError(
        expected=f"objective.{name} to be {expected}",
        got=repr(got),
        fix=fix or f"Set objective.{name} of the stage.",
    )
