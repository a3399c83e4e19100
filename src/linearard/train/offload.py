"""AdamW whose moments lie in host memory: less of the GPU, more time a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from linearard.model import Moving, pinned_like, to_device, to_host

_MOMENTS = ("exp_avg", "exp_avg_sq")


class OffloadedAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` with both moments in pinned host memory, 8 bytes a trained weight.

    A step brings them over one parameter at a time, computes on the GPU and takes them back, the next ones
    coming while these go: 8 bytes a weight over the bus, each way.

    Args:
        parameters, options: as `torch.optim.AdamW`, without `amsgrad`, `fused` and `foreach`.
    """

    def __init__(self, parameters: Any, **options: Any) -> None:
        super().__init__(parameters, foreach=False, fused=False, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """One step; `closure` is not supported."""
        assert closure is None
        due = [
            (parameter, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        coming = self._bring(due[0][0]) if due else None
        going: Moving | None = None
        for index, (parameter, group) in enumerate(due):
            moments = coming.wait()
            if index + 1 < len(due):
                coming = self._bring(due[index + 1][0])
            self._update(parameter, group, moments)
            if going is not None:
                going.wait()
            if parameter.is_cuda:  # else they are the same memory
                going = to_host(moments, self._moments(parameter))

    def state_dict(self) -> dict[str, Any]:
        """As of any optimizer, once the moments have arrived in host memory."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of any optimizer; the moments go to host memory."""
        super().load_state_dict(state_dict)  # which puts them where the parameters are
        for parameter, state in self.state.items():
            for name in _MOMENTS:
                state[name] = pinned_like(parameter).copy_(state[name])
            state["step"] = state["step"].cpu()

    def _moments(self, parameter: Tensor) -> list[Tensor]:
        return [self.state[parameter][name] for name in _MOMENTS]

    def _bring(self, parameter: Tensor) -> Moving:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            for name in _MOMENTS:
                state[name] = pinned_like(parameter).zero_()
        return to_device(self._moments(parameter), parameter.device)

    def _update(self, parameter: Tensor, group: dict[str, Any], moments: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        adamw(
            [parameter],
            [parameter.grad],
            [moments[0]],
            [moments[1]],
            [],
            [self.state[parameter]["step"]],
            foreach=False,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )
