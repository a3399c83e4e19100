"""Which terms make up a training loss, and how they are weighed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from linearard.distill.output_terms import OUTPUT_TERMS, OutputTerm
from linearard.errors import RecipeError
from linearard.fields import (
    Beside,
    Rule,
    a_list,
    a_mapping,
    check_fields,
    described,
    flag,
    number,
    one_of,
    refuse,
    whole,
)
from linearard.ops.relation_kl import IMPLEMENTATIONS

RELATIONS = ("q", "k", "v", "qk")
_WEIGHT = number(0, 1e6, words="a weight")
_LAYERS = a_list(whole(-100_000, 100_000), least=1).or_null()


@dataclass
class ObjectiveConfig:
    """A weighted sum of relation terms, logit KL and the language-model loss."""

    relations: dict[str, float] = described(
        lambda: {"q": 1.0, "k": 1.0, "v": 1.0},
        "Weight of each relation: q, k, v (self-relations of the paper) and qk (the causal attention "
        "distribution). Empty: no relation loss.",
        a_mapping(_WEIGHT, names=RELATIONS),
    )
    inputs: str = described(
        "own",
        "own: the student reads its own hidden states, gradients run through depth (the paper); "
        "teacher: each student layer reads the teacher's, for little more than the teacher's forward.",
        one_of(("own", "teacher")),
        Beside(
            lambda c: c.inputs == "own" or c._is_of_relations_alone,
            "own where other terms than relations count, or positions are skipped",
            "With the teacher's inputs, the student runs no further than its attention.",
        ),
    )
    layers: list[int] | None = described(
        None, "Layers whose relations count, -1 the last; null: all.", _LAYERS
    )
    layer_weights: list[float] | None = described(
        None,
        "One weight per counted layer; null: equal. They are normalised to sum 1.",
        a_list(_WEIGHT, distinct=False).or_null(),
        Beside(
            lambda c: None in (c.layers, c.layer_weights) or len(c.layers) == len(c.layer_weights),
            "as many weights as objective.layers has layers",
        ),
        Beside(
            lambda c: c.layer_weights is None or sum(c.layer_weights) > 0,
            "weights with a positive sum",
        ),
    )
    normalisation: str = described(
        "own",
        "own: mean over the relation's own heads; paper: divide by the number of query heads.",
        one_of(("own", "paper")),
    )
    temperature: float = described(1.0, "Divides teacher and student scores.", number(1e-3, 1e3))
    logit_weight: float = described(0.0, "Weight of KL between output distributions.", _WEIGHT)
    logit_positions: int | None = described(
        512,
        "Logit KL reads the last this many positions (the paper's 512); null: all.",
        whole(1).or_null(),
    )
    teacher_window: int | None = described(
        None,
        "Logit KL of windows longer than this: the teacher reads them in windows of this many tokens "
        "that overlap by half; null: the native window.",
        Rule(
            lambda v: v is None or (whole(2, 1 << 27).right(v) and v % 2 == 0),
            "null or an even number of tokens",
        ),
        Beside(
            lambda c: c.teacher_window is None or c._is_of_outputs_alone,
            "null where other terms than logit KL read the teacher",
            "A teacher that reads in windows gives output distributions only.",
        ),
    )
    hidden_weight: float = described(
        0.0,
        "Weight of the squared distance of hidden states, relative to the teacher's size.",
        _WEIGHT,
    )
    hidden_layers: list[int] | None = described(
        None, "Layers whose output the hidden term compares, -1 the last; null: all.", _LAYERS
    )
    skip_positions: bool = described(
        False,
        "The student reads each window with a random jump in its positions, up to the stretched "
        "window; the teacher reads it as it is.",
        flag(),
        Beside(
            lambda c: not c.skip_positions or c._compares_outputs_alone,
            "false beside a language-model loss, or without a teacher",
            "Put the language-model loss into another part or stage.",
        ),
    )
    lm_weight: float = described(0.0, "Weight of the next-token cross-entropy.", _WEIGHT)
    repeated_weight: float = described(
        0.0,
        "Weight of the next-token cross-entropy on repeated passages alone (`data.repeated_passages`), which "
        "logit KL then leaves out: for windows in which the teacher cannot see so far back.",
        _WEIGHT,
        formerly="recall_weight",
    )
    implementation: str | None = described(
        None,
        "Relation KL: reference, chunked, triton or hopper; null: the fastest for the device.",
        one_of(IMPLEMENTATIONS).or_null(),
    )

    def __post_init__(self) -> None:
        self.relations = self.relations or {}
        check_fields(self, "objective")
        self.relations = dict(self.relations)
        if not (self.needs_teacher or self.needs_output):
            raise RecipeError(
                expected="an objective with at least one weight above 0",
                got="none",
                fix=f"Set one of relations, hidden_weight, {', '.join(t.field for t in OUTPUT_TERMS)}.",
            )

    @property
    def _is_of_relations_alone(self) -> bool:
        others = self.needs_output or self.hidden_weight or self.skip_positions
        return bool(self.active_relations) and not others

    @property
    def _is_of_outputs_alone(self) -> bool:
        return self.needs_teacher_output and not (self.active_relations or self.hidden_weight)

    @property
    def _compares_outputs_alone(self) -> bool:
        return self.needs_teacher and all(term.reads_teacher for term in self.output_terms)

    @property
    def active_relations(self) -> dict[str, float]:
        """Relations with a weight above zero."""
        return {name: weight for name, weight in self.relations.items() if weight}

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with the original model."""
        return bool(self.active_relations) or self.hidden_weight > 0 or self.needs_teacher_output

    @property
    def needs_output(self) -> bool:
        """Whether any term reads the model's output distributions."""
        return bool(self.output_terms)

    @property
    def needs_teacher_output(self) -> bool:
        """Whether any term reads the original's output distributions."""
        return any(term.reads_teacher for term in self.output_terms)

    @property
    def output_terms(self) -> list[OutputTerm]:
        """The active terms that read the model's output distributions."""
        return [term for term in OUTPUT_TERMS if term.weight(self)]

    @property
    def needs_native_window(self) -> bool:
        """Whether the teacher must read a window as one: logit KL alone lets it read in pieces."""
        return bool(self.active_relations) or self.hidden_weight > 0 or self.skip_positions

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each active term, by the name that logs have for it."""
        weights = {f"relation_{name}": w for name, w in self.active_relations.items()}
        weights |= {term.name: term.weight(self) for term in OUTPUT_TERMS if term.reads_teacher}
        weights |= {"hidden": self.hidden_weight}
        weights |= {term.name: term.weight(self) for term in OUTPUT_TERMS if not term.reads_teacher}
        return {name: w for name, w in weights.items() if w}

    def weights_by_layer(
        self, num_layers: int, attention: Sequence[int] | None = None
    ) -> dict[int, float]:
        """Normalised weight of each counted layer.

        Args:
            num_layers: of the decoder.
            attention: those of them that have attention; None: all.

        Raises:
            RecipeError: a layer the model does not have, or has without attention, or a wrong number
                of weights.
        """
        attention = range(num_layers) if attention is None else attention
        asked = list(attention) if self.layers is None else self.layers
        layers = _layers_of(num_layers, "layers", asked)
        if without := [layer for layer in layers if layer not in attention]:
            refuse(
                "objective.layers",
                f"layers with attention ({', '.join(map(str, attention))})",
                without,
            )
        weights = self.layer_weights or [1.0] * len(layers)
        if len(weights) != len(layers):
            refuse(
                "objective.layer_weights", f"{len(layers)} weights, one a layer", f"{len(weights)}"
            )
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
        refuse(f"objective.{name}", f"indices from {-num_layers} to {num_layers - 1}", outside)
    counted = [layer % num_layers for layer in layers]
    if len(set(counted)) < len(counted):
        refuse(f"objective.{name}", "a list of distinct layers", layers)
    return counted
