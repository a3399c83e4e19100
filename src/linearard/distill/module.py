"""One training forward: the teacher's pass, the student's pass, the weighted loss.

This is the module a trainer wraps (also in DistributedDataParallel): everything of a step happens inside
its `forward`, so both passes and the early end of a pass stay invisible to the wrapper.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from linearard.distill.config import ObjectiveConfig
from linearard.distill.output import next_token_loss, output_kl
from linearard.distill.relations import StudentRelations, TeacherRelations
from linearard.model import ChunkedCausalLM, RestorableModel


class RestorationModule(nn.Module):
    """The loss of one stage over a restorable model.

    Args:
        restorable: one copy of the weights; its adapter is what receives gradients.
        objective: the terms of the loss.

    Raises:
        RecipeError: the objective names layers the model does not have.
        ModelError: a term reads the output of a model that forms its logits in an unknown way.
    """

    def __init__(self, restorable: RestorableModel, objective: ObjectiveConfig) -> None:
        super().__init__()
        self.restorable = restorable
        self.model = restorable.model
        self.objective = objective
        self._layers = objective.weights_by_layer(restorable.tap.num_layers)
        if objective.active_relations:
            self._last_layer = max(self._layers)
        self._stop = not objective.needs_hidden
        self._recomputes = False
        _switch_recomputation(self.model, False)  # a module of an earlier stage may have left it on
        self._language_model = ChunkedCausalLM(restorable.model)
        if objective.needs_hidden:
            self._check_output()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            input_ids: int64 `[batch, tokens]`.
            attention_mask: 1 for tokens, 0 for padding, `[batch, tokens]`, or None: no padding.

        Returns:
            `loss` (scalar with gradient) and each term, unweighted and detached, in nats:
            `relation_q` …, `logit_kl`, `lm`.
        """
        terms, _ = self._run(input_ids, attention_mask)
        weights = {f"relation_{k}": w for k, w in self.objective.active_relations.items()}
        weights |= {"logit_kl": self.objective.logit_weight, "lm": self.objective.lm_weight}
        loss = sum(weights[name] * term for name, term in terms.items())
        return {"loss": loss} | {name: term.detach() for name, term in terms.items()}

    def gradient_checkpointing_enable(self) -> None:
        """Recompute layers in the backward pass instead of keeping their activations.

        The layer in which a pass ends early is never recomputed: it is cut short anyway. After a backward
        pass the attention is still observed, until the next forward pass or `tap.observe(None)`.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        _switch_recomputation(self.model, True)
        self._recomputes = True  # the observer must stay for the backward pass
        if not self._stop:
            return
        for layer in self.model.modules():
            if isinstance(layer, GradientCheckpointingLayer) and any(
                getattr(part, "layer_idx", None) == self._last_layer for part in layer.modules()
            ):
                layer.gradient_checkpointing = False

    @property
    def leaves_parameters_unused(self) -> bool:
        """Whether some trainable weights get no gradient, which DistributedDataParallel must know."""
        if self.objective.needs_hidden:
            return False
        every_kind = {"q", "k", "v"} <= self.objective.active_relations.keys()
        reaches_end = self._last_layer == self.restorable.tap.num_layers - 1
        # Other targets than q, k and v may lie behind the attention of the last layer.
        default_targets = self.restorable.adapter.config.target_modules is None
        return not (every_kind and reaches_end and default_targets)

    @torch.no_grad()
    def _check_output(self) -> None:
        """Refuse a model whose logits are not its head applied to the decoder's output."""
        training = self.model.training
        self.model.eval()
        tokens = torch.arange(min(16, self._language_model.vocab_size))
        self._language_model.check({"restored": lambda: self.restorable.view("restored")}, tokens)
        self.model.train(training)

    def _run(
        self, input_ids: Tensor, attention_mask: Tensor | None
    ) -> tuple[dict[str, Tensor], StudentRelations | None]:
        objective, tap = self.objective, self.restorable.tap
        mask = None if attention_mask is None else attention_mask.bool()
        teacher_hidden, student = None, None
        if objective.needs_teacher:
            # The teacher's output is read by the logit KL alone; without it the pass ends early.
            stop_teacher = not objective.logit_weight
            teacher = TeacherRelations(self._layers, objective.active_relations, stop_teacher)
            teacher_hidden = self._teacher_pass(teacher, input_ids, attention_mask)
            student = StudentRelations(objective, self._layers, teacher.kept, mask, self._stop)
        hidden = None
        with tap.stopping_at(student if objective.active_relations else None):
            hidden = self._language_model.hidden(input_ids, attention_mask)
        if not (self.training and self._recomputes):
            tap.observe(None)
        terms: dict[str, Tensor] = {}
        if student is not None:
            terms |= {f"relation_{name}": term for name, term in student.terms.items()}
        if objective.logit_weight:
            terms["logit_kl"] = output_kl(
                self._language_model, teacher_hidden, hidden, objective.logit_positions, mask
            )
        if objective.lm_weight:
            terms["lm"] = next_token_loss(self._language_model, hidden, input_ids, mask)
        return terms, student

    @torch.no_grad()
    def _teacher_pass(
        self, observer: TeacherRelations, input_ids: Tensor, attention_mask: Tensor | None
    ) -> Tensor | None:
        training = self.model.training
        self.model.eval()  # the teacher is deterministic, whatever dropout the model has
        hidden = None
        watch = observer if self.objective.active_relations else None
        try:
            with self.restorable.view("original"), self.restorable.tap.stopping_at(watch):
                hidden = self._language_model.hidden(input_ids, attention_mask)
        finally:
            self.model.train(training)
        return hidden


def _switch_recomputation(model: Any, on: bool) -> None:
    # transformers renamed these methods, and warns of the older names
    renamed = hasattr(model, "activation_checkpointing_enable")
    name = "activation_checkpointing" if renamed else "gradient_checkpointing"
    if on:
        getattr(model, f"{name}_enable")(**{f"{name}_kwargs": {"use_reentrant": False}})
    else:
        getattr(model, f"{name}_disable")()


@torch.no_grad()
def relation_profile(
    restorable: RestorableModel,
    blocks: Iterable[Tensor],
    relations: Iterable[str] = ("q", "k", "v", "qk"),
) -> dict[str, dict[str, list[float]]]:
    """Relation KL to the original by view, relation and layer, in nats: before and after restoration.

    Leaves the model in evaluation mode and without recomputation: not for the middle of a stage.

    Args:
        restorable: the model.
        blocks: int64 `[batch, tokens]` each, on any device.
        relations: which relations to measure.
    """
    objective = ObjectiveConfig(relations=dict.fromkeys(relations, 1.0))
    module = RestorationModule(restorable, objective).eval()
    sums: dict[str, dict[str, list[float]]] = {}
    count = 0
    for block in blocks:
        count += 1
        for view in ("stretched", "restored"):
            with restorable.view(view):
                _, student = module._run(block.to(restorable.device), None)
            for name, layers in student.by_layer.items():
                total = sums.setdefault(view, {}).setdefault(name, [0.0] * len(layers))
                for position, layer in enumerate(sorted(layers)):
                    total[position] += float(layers[layer])
    return {
        view: {name: [value / count for value in layers] for name, layers in by_name.items()}
        for view, by_name in sums.items()
    }
