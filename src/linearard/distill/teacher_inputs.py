"""Relation terms with teacher inputs: each student layer reads the teacher's hidden states.

Only the teacher runs through its depth. Beside each of its attention layers, the student's queries, keys
and values are formed from the same input, compared, and differentiated on the spot: no gradient runs
through depth, and one layer is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linearard.capture import LayerAttention, StopForward
from linearard.distill.config import ObjectiveConfig
from linearard.distill.relations import TeacherRelations, relation_terms
from linearard.errors import ModelError
from linearard.model import ChunkedCausalLM, RestorableModel, sharing_projections
from linearard.model.shares import local, mean_gradient
from linearard.model.view_names import ORIGINAL
from linearard.ops import pointwise
from linearard.ops.derivatives import first_derivatives_only


def teacher_input_terms(
    config: ObjectiveConfig,
    layers: Mapping[int, float],
    restorable: RestorableModel,
    language_model: ChunkedCausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    shares: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss, and each relation's term in nats.

    Args:
        config: the relations and their weights.
        layers: weight of each counted layer.
        restorable, language_model: the model.
        input_ids: int64 `[batch, tokens]`.
        attention_mask: 1 for tokens, 0 for padding, `[batch, tokens]`, or None.
        shares: what the terms are multiplied with, the same for all: they count the same positions.

    Returns:
        The loss with gradient; the terms detached.

    Raises:
        ModelError: the model does not hand its rotations to the attention as `position_embeddings`.
    """
    model, tap = restorable.model, restorable.tap
    training, wanted = model.training, torch.is_grad_enabled()
    parameters = restorable.adapter.parameters()
    modules = [tap.modules[layer] for layer in layers]
    without_values = "v" not in config.active_relations
    with (
        restorable.rope.pairing() as rotations,
        sharing_projections(modules, without_values=without_values),
    ):
        beside = _BesideTeacher(config, layers, restorable, attention_mask, training, rotations)
        beside.parameters = parameters if wanted else []
        handles = [module.register_forward_hook(beside, with_kwargs=True) for module in modules]
        model.eval()  # the teacher is deterministic, whatever dropout the model has
        try:
            with torch.no_grad(), restorable.view(ORIGINAL), tap.observing(beside.teacher):
                language_model.hidden(input_ids, attention_mask, tap.sequence)
        finally:
            for handle in handles:
                handle.remove()
            model.train(training)
    terms = {
        f"relation_{name}": torch.stack([layers[i] * term for i, term in found.items()]).sum()
        for name, found in beside.by_layer.items()
    }
    loss = torch.stack([config.weights[name] * term for name, term in terms.items()]).sum()
    if wanted:
        loss = _WithKnownGradient.apply(loss, beside.gradients, *parameters)
    if shares is not None:
        loss, terms = shares[0] * loss, {name: shares[0] * term for name, term in terms.items()}
    return loss, terms


class _BesideTeacher:
    """Hook behind each attention layer of the teacher: forms the student's terms of that layer."""

    def __init__(
        self,
        config: ObjectiveConfig,
        layers: Mapping[int, float],
        restorable: RestorableModel,
        attention_mask: Tensor | None,
        training: bool,
        rotations: Mapping[int, Any],
    ) -> None:
        self._config, self._layers, self._restorable = config, layers, restorable
        self._mask = None if attention_mask is None else attention_mask.bool()
        self._training, self._rotations = training, rotations
        self.teacher = TeacherRelations(layers, config.active_relations, stop=False)
        self.parameters: list[nn.Parameter] = []
        self.gradients: dict[int, Tensor] = {}
        self.by_layer: dict[str, dict[int, Tensor]] = {n: {} for n in config.active_relations}

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        layer = module.layer_idx
        student = self._student(module, args, kwargs)
        with torch.set_grad_enabled(bool(self.parameters)):
            terms = relation_terms(self._config, student, self.teacher.take(layer), self._mask)
            weights = self._config.active_relations
            loss = sum(self._layers[layer] * weights[name] * term for name, term in terms.items())
        for name, term in terms.items():
            self.by_layer[name][layer] = term.detach()
        if self.parameters:
            # As in any backward pass: the operations keep the precision of the forward pass.
            own = self._restorable.adapter.trained_in(module)
            with torch.autocast(loss.device.type, enabled=False):
                found = torch.autograd.grad(loss, [now for now, _ in own], allow_unused=True)
            for (_, parameter), gradient in zip(own, found, strict=True):
                if gradient is not None:
                    self.gradients[id(parameter)] = mean_gradient(gradient, parameter)
        if layer == max(self._layers):
            raise StopForward

    def _student(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> LayerAttention:
        """The student's operands of this layer, for the input that the teacher's layer had."""
        native = kwargs.get("position_embeddings")
        if native is None or id(native[0]) not in self._rotations:
            raise ModelError(
                expected="an attention layer that is given its rotations as position_embeddings",
                got=type(module).__name__,
                fix="Use objective.inputs: own with this architecture.",
            )
        seen: list[LayerAttention] = []

        def observe(attention: LayerAttention) -> None:
            seen.append(attention)
            raise StopForward

        tap, adapter = self._restorable.tap, self._restorable.adapter
        stretched = self._rotations[id(native[0])]
        adapter.switch(True)
        module.train(self._training)
        try:
            with torch.set_grad_enabled(bool(self.parameters)), tap.observing(observe):
                # Not through __call__, whose hooks are these.
                module.forward(*args, **kwargs | {"position_embeddings": stretched})
        finally:
            module.eval()
            adapter.switch(False)
        return seen[0]


class _WithKnownGradient(torch.autograd.Function):
    """A loss whose gradients of the parameters were found while it was formed."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, gradients: dict[int, Tensor], *parameters: Tensor
    ) -> Tensor:
        ctx.gradients = [gradients.get(id(parameter)) for parameter in parameters]
        ctx.save_for_backward(*parameters)
        return loss.clone()

    @staticmethod
    @first_derivatives_only("relations with the teacher's inputs", "Set objective.inputs to own.")
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        found = [gradient for gradient in gradients if gradient is not None]
        # They are nobody else's, and used once; mostly by 1.
        pointwise.scale_([local(gradient) for gradient in found], upstream)
        return None, None, *gradients
