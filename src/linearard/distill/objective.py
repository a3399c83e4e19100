"""The terms of one objective on one batch: the teacher's pass, then the student's."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from linearard.distill.config import ObjectiveConfig
from linearard.distill.hidden import hidden_distance
from linearard.distill.output_terms import LogitKL, Outputs, repeated_of
from linearard.distill.position_skips import draw_skip
from linearard.distill.relations import StudentRelations, TeacherRelations
from linearard.distill.teacher_inputs import teacher_input_terms
from linearard.distill.windowed_teacher import windowed_hidden
from linearard.errors import ModelError
from linearard.model import ChunkedCausalLM, RestorableModel
from linearard.model.view_names import ORIGINAL


class Objective:
    """An `ObjectiveConfig` bound to a model.

    Attributes:
        config: the terms and their weights.
        emphasis: the logit KL's weight is multiplied with it.
        last_layer: where the student's pass may end, or None: it runs to the end.

    Raises:
        RecipeError: the objective names layers the model does not have.
        ModelError: the output of a compared layer cannot be seen.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        restorable: RestorableModel,
        language_model: ChunkedCausalLM,
        offload_teacher: bool = False,
    ) -> None:
        self.config, self._offload = config, offload_teacher
        self.emphasis = 1.0
        self._restorable, self._language_model = restorable, language_model
        layers = restorable.tap.num_layers
        self._layers = config.weights_by_layer(layers, sorted(restorable.tap.modules))
        self._compared = config.compared_layers(layers)
        if unseen := [i for i in self._compared if i not in restorable.layers.layers]:
            raise ModelError(
                expected="decoder layers of transformers' own kind, for objective.hidden_weight",
                got=f"others in {type(restorable.model).__name__} (layers {unseen})",
                fix="Set objective.hidden_weight to 0, or hidden_layers to others.",
            )
        runs_to_end = config.needs_output or bool(self._compared)
        self.last_layer = None if runs_to_end else max(self._layers)
        self._teacher_window = config.teacher_window or restorable.rope.native_window // 2 * 2

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        repeated: Tensor | None = None,
        shares: Tensor | None = None,
        *,
        recomputed: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss with gradient, and each term, unweighted and detached.

        Args:
            input_ids: int64 `[batch, tokens]`.
            attention_mask: 1 for tokens, 0 for padding, `[batch, tokens]`, or None.
            repeated: bool `[batch, tokens]`, tokens that repeat earlier ones; for the recall term.
            shares: what the terms are multiplied with (see `step_shares`), or None: 1.
            recomputed: whether the backward pass computes layers again (see `AttentionTap.observing`).

        Raises:
            DataError: a recall term without `repeated`.
        """
        config, restorable = self.config, self._restorable
        repeated = repeated_of(config, repeated)
        if config.inputs == "teacher":
            return teacher_input_terms(
                config,
                self._layers,
                restorable,
                self._language_model,
                input_ids,
                attention_mask,
                shares,
            )
        mask = None if attention_mask is None else attention_mask.bool()
        shared = restorable.tap.sequence
        teacher_output, teacher_hidden, student = None, {}, None
        if config.needs_teacher:
            # Where no term reads its output, the teacher's pass ends early too.
            stop = not (config.needs_teacher_output or self._compared)
            observer = TeacherRelations(self._layers, config.active_relations, stop, self._offload)
            teacher_output, teacher_hidden = self._teacher_pass(observer, input_ids, attention_mask)
            student = StudentRelations(
                config, self._layers, observer, mask, self.last_layer is not None
            )
        output = None
        positions = contextlib.nullcontext()
        if config.skip_positions:
            skip = draw_skip(input_ids.shape[1], restorable.rope.target_window)
            positions = restorable.rope.skipping(*skip)
        watch = student if config.active_relations else None
        with (
            positions,
            restorable.layers.collecting(self._compared) as student_hidden,
            restorable.tap.observing(watch, recomputed=recomputed and watch is not None),
        ):
            output = self._language_model.hidden(input_ids, attention_mask, shared)
        terms: dict[str, Tensor] = {}
        if watch is not None:
            terms |= {f"relation_{name}": term for name, term in watch.terms.items()}
        read = (output, teacher_output, input_ids, mask, repeated)
        outputs = Outputs(self._language_model, *read, shared)
        if self._compared:
            terms["hidden"] = hidden_distance(teacher_hidden, student_hidden, mask)
        terms |= {term.name: term.loss(config, outputs) for term in config.output_terms}
        terms = {name: terms[name] for name in config.weights}
        if shares is not None:
            named = dict(zip(config.weights, shares.unbind(), strict=True))
            terms = {name: named[name] * term for name, term in terms.items()}
        weights = config.weights
        if self.emphasis != 1.0 and LogitKL.name in weights:
            weights = weights | {LogitKL.name: self.emphasis * weights[LogitKL.name]}
        loss = sum(weights[name] * term for name, term in terms.items())
        if output is not None and self.last_layer is not None:
            loss = _ReachedBy.apply(loss, output)
        detached = {name: term.detach() for name, term in terms.items()}
        return loss, detached

    @torch.no_grad()
    def _teacher_pass(
        self, observer: TeacherRelations, input_ids: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor | None, Mapping[int, Tensor]]:
        """Last hidden states `[batch, tokens, hidden]` (None: not reached), and those by layer."""
        restorable, model = self._restorable, self._restorable.model
        training, tap = model.training, restorable.tap
        model.eval()  # the teacher is deterministic, whatever dropout the model has
        output = None
        try:
            with (
                restorable.view(ORIGINAL),
                restorable.layers.collecting(self._compared) as hidden,
                tap.observing(observer if self.config.active_relations else None),
            ):
                if self.config.needs_native_window:
                    output = self._language_model.hidden(input_ids, attention_mask, tap.sequence)
                else:  # padding stands behind the tokens and is seen by none of them
                    window, shared = self._teacher_window, tap.sequence
                    with tap.sharing(None):
                        output = windowed_hidden(self._language_model, input_ids, window, shared)
            return output, hidden
        finally:
            model.train(training)


class _ReachedBy(torch.autograd.Function):
    """A loss that a gradient of nothing also comes from through the pass's output.

    Where layers are divided among processes (`model.sharding`), a pass that ends early goes on to the end
    without computing. The gradient that comes back into a layer's output is what its weights are gathered by:
    so one has to come, though no term reads that output.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, output: Tensor) -> Tensor:
        ctx.like = output.shape, output.dtype, output.device
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        shape, dtype, device = ctx.like
        return upstream, torch.zeros(shape, dtype=dtype, device=device)
