"""The optimizers that are ours to build: Muon with AdamW for vectors, AdamW with moments in host memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from linearard.recipe.stage import RestorationConfig
from linearard.train.offload import OffloadedAdamW


class MuonWithAdamW(Optimizer):
    """Muon for matrices and AdamW for everything else, at one learning rate.

    Muon makes the singular values of a step equal, which says nothing of a vector (a bias, the weight of a
    norm). Its steps are scaled to AdamW's size (`match_rms_adamw` of `torch.optim.Muon`), so that one
    learning rate serves both.

    Args:
        params: weights, or groups of weights as PyTorch's optimizers take them; a group may mix both kinds.
        lr: learning rate.
        betas, eps: of AdamW.
        weight_decay: of both.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        groups = []
        for group in _as_groups(params):
            for matrices in (True, False):
                chosen = [p for p in group["params"] if (p.ndim == 2) == matrices]
                if chosen:
                    groups.append({**group, "params": chosen, "matrices": matrices})
        self._parts: list[Optimizer] = []
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        own = {"lr": lr, "weight_decay": weight_decay}
        kinds = (
            (torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw"}),
            (torch.optim.AdamW, {"betas": betas, "eps": eps, "fused": _on_gpu(groups)}),
        )
        for matrices, (kind, options) in zip((True, False), kinds, strict=True):
            mine = [group for group in self.param_groups if group["matrices"] == matrices]
            if mine:
                part = kind([{**group} for group in mine], **own, **options)
                # One dictionary for both: a schedule that changes a rate here changes it there.
                for outer, inner in zip(mine, part.param_groups, strict=True):
                    outer.update(inner)
                part.param_groups = mine
                part.state = self.state
                self._parts.append(part)

    def step(self, closure: Any = None) -> Tensor | None:
        """One step of both."""
        loss = None if closure is None else closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `Optimizer.load_state_dict`; both parts go on with what was loaded."""
        super().load_state_dict(state_dict)
        for part, matrices in zip(self._parts, self._kinds(), strict=True):
            part.param_groups = [g for g in self.param_groups if g["matrices"] == matrices]
            part.state = self.state

    def _kinds(self) -> list[bool]:
        return [isinstance(part, torch.optim.Muon) for part in self._parts]


def own_optimizer(args: RestorationConfig) -> tuple[type, dict[str, Any]] | None:
    """Class and arguments of the optimizer of a stage, or None where Trainer's own choice serves."""
    options = {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
    }
    if args.muon:
        return MuonWithAdamW, options
    return (OffloadedAdamW, options) if args.offload_optimizer else None


def _as_groups(params: Iterable[Any]) -> list[dict[str, Any]]:
    listed = list(params)
    if listed and isinstance(listed[0], dict):
        return [{**group, "params": list(group["params"])} for group in listed]
    return [{"params": listed}]


def _on_gpu(groups: list[dict[str, Any]]) -> bool:
    return all(p.is_cuda for group in groups for p in group["params"])
