"""One training forward: the teacher's pass, the student's pass, the weighted loss.

This is the module a trainer wraps (also in DistributedDataParallel): everything of a step happens inside
its `forward`, so both passes and the early end of a pass stay invisible to the wrapper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linearard.capture import SharedSequence
from linearard.distill.config import ObjectiveConfig
from linearard.distill.objective import Objective
from linearard.distill.output import check_frozen_head
from linearard.errors import DataError
from linearard.model import ChunkedCausalLM, RestorableModel
from linearard.model.view_names import RESTORED


class RestorationModule(nn.Module):
    """The loss of one stage over a restorable model.

    Args:
        restorable: one copy of the weights; its adapter is what receives gradients.
        objective: the terms of the loss; or several objectives by name, for the parts of a stage.
        offload_teacher: keep the teacher's queries, keys and values in host memory until the student
            has come to their layer.
        shared: the processes that share each window: all get the same batch, and the mean of their losses
            is the batch's; None: each reads its own.

    Raises:
        RecipeError: an objective names layers the model does not have, or a trained head.
        ModelError: a term reads the output of a model that forms its logits in an unknown way.
    """

    def __init__(
        self,
        restorable: RestorableModel,
        objective: ObjectiveConfig | Mapping[str, ObjectiveConfig],
        *,
        offload_teacher: bool = False,
        shared: SharedSequence | None = None,
    ) -> None:
        super().__init__()
        self.restorable = restorable
        self.model = restorable.model
        self._recomputes, self._kept_layers = False, 0
        self._shared = shared
        _switch_recomputation(self.model, False)  # a module of an earlier stage may have left it on
        language_model = ChunkedCausalLM(restorable.model)
        named = {"": objective} if isinstance(objective, ObjectiveConfig) else objective
        self._objectives = {
            name: Objective(config, restorable, language_model, offload_teacher)
            for name, config in named.items()
        }
        if any(config.needs_output for config in named.values()):
            check_frozen_head(language_model)
            self._check_output(language_model)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        repeated: Tensor | None = None,
        part: str = "",
        shares: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            input_ids: int64 `[batch, tokens]`.
            attention_mask: 1 for tokens, 0 for padding, `[batch, tokens]`, or None: no padding.
            repeated: bool `[batch, tokens]`, for a recall term: tokens that repeat earlier ones.
            part: which of several objectives; the batch is of one part.
            shares: float32 `[terms]`, what the terms are multiplied with in the order of the objective's
                `weights` (see `step_shares`); None: 1.

        Returns:
            `loss` (scalar with gradient) and each term, unweighted and detached, in nats (the hidden
            term: relative): `relation_q` …, `logit_kl`, `hidden`, `lm`, `recall`; with `part/` before
            them if there is one.

        Raises:
            DataError: a recall term, and a batch that does not say which tokens repeat earlier ones; or
                padding, in a window that processes share.
            RuntimeError: layers are recomputed, outside of `restorable.tap.step()`.
        """
        if self._shared is not None and attention_mask is not None:
            raise DataError(
                expected="windows without padding, for processes that share them",
                got="an attention_mask",
                fix="Cut the text into whole windows, or set sequence_parallel to 1.",
            )
        objective = self._objectives[part]
        self._choose_recomputed_layers(objective)
        recomputed = self.training and self._recomputes and torch.is_grad_enabled()
        with self.restorable.tap.sharing(self._shared, recomputed=recomputed):
            loss, terms = objective(
                input_ids, attention_mask, repeated, shares, recomputed=recomputed
            )
        prefix = f"{part}/" if part else ""
        return {"loss": loss} | {f"{prefix}{name}": term for name, term in terms.items()}

    def gradient_checkpointing_enable(self, kept_layers: int = 0) -> None:
        """Recompute layers in the backward pass instead of keeping their activations.

        The layer in which a pass ends early is never recomputed: it is cut short anyway. From then on the
        forward and the backward pass of a batch stand in one `with restorable.tap.step():`.

        Args:
            kept_layers: how many of the last layers keep their activations.
        """
        _switch_recomputation(self.model, True)
        self._kept_layers = kept_layers
        self._recomputes = True

    def emphasise_logits(self, factor: float) -> None:
        """Multiply the logit KL's weight of all parts whose windows the teacher reads whole.

        Args:
            factor: of the weights that the objectives were configured with.
        """
        for objective in self._objectives.values():
            if objective.config.teacher_window is None:
                objective.emphasis = factor

    @property
    def leaves_parameters_unused(self) -> bool:
        """Whether some trainable weights get no gradient, which DistributedDataParallel must know."""
        return any(map(self._leaves_unused, self._objectives.values()))

    def _leaves_unused(self, objective: Objective) -> bool:
        layers = self.restorable.tap.num_layers
        last_output = layers - 1 in objective.config.compared_layers(layers)
        if objective.config.needs_output or last_output:
            return False
        every_kind = {"q", "k", "v"} <= objective.config.active_relations.keys()
        reaches_end = objective.last_layer == max(self.restorable.tap.modules)
        # Other targets than q, k and v may lie behind the attention of the last layer.
        default_targets = self.restorable.adapter.config.target_modules is None
        return not (every_kind and reaches_end and default_targets)

    def _choose_recomputed_layers(self, objective: Objective) -> None:
        if self._recomputes:
            for index, layer in self.restorable.layers.layers.items():
                again = index < self.restorable.tap.num_layers - self._kept_layers
                layer.gradient_checkpointing = again and index != objective.last_layer

    @torch.no_grad()
    def _check_output(self, language_model: ChunkedCausalLM) -> None:
        """Refuse a model whose logits are not its head applied to the decoder's output."""
        training = self.model.training
        self.model.eval()
        tokens = torch.arange(min(16, language_model.vocab_size))
        language_model.check({RESTORED: lambda: self.restorable.view(RESTORED)}, tokens)
        self.model.train(training)


def _switch_recomputation(model: Any, on: bool) -> None:
    # transformers renamed these methods, and warns of the older names
    renamed = hasattr(model, "activation_checkpointing_enable")
    name = "activation_checkpointing" if renamed else "gradient_checkpointing"
    if on:
        getattr(model, f"{name}_enable")(**{f"{name}_kwargs": {"use_reentrant": False}})
    else:
        getattr(model, f"{name}_disable")()
