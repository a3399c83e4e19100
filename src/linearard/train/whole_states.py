"""An optimizer's states of divided weights: whole on disk, so that any number of processes reads them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from linearard.model.shares import divided_like, is_sharded, whole


def whole_state(optimizer: Any) -> dict[str, Any] | None:
    """The state that an optimizer of whole weights would have. Every process must ask at once.

    Args:
        optimizer: of weights that are divided among processes, perhaps wrapped by `accelerate`.

    Returns:
        As `Optimizer.state_dict` in the first process, in host memory; None in the others.
    """
    state = optimizer.state_dict()
    first = torch.distributed.get_rank() == 0
    found: dict[int, dict[str, Any]] = {}
    for number, values in state["state"].items():
        found[number] = {name: _whole(value, first) for name, value in values.items()}
    return {"state": found, "param_groups": state["param_groups"]} if first else None


def load_whole_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Go on from a state of whole weights, by whatever number of processes it was written.

    Args:
        optimizer: see `whole_state`.
        state: of whole weights, the same in every process.
    """
    state = copy.copy(state)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [n for group in state["param_groups"] for n in group["params"]]
    state["state"] = {
        number: {
            name: _divided(value, parameter)
            for name, value in state["state"].get(number, {}).items()
        }
        for number, parameter in zip(numbers, parameters, strict=True)
        if number in state["state"]
    }
    optimizer.load_state_dict(state)


def _whole(value: Any, kept: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    found = whole(value)
    return found.cpu() if kept else None


def _divided(value: Any, parameter: Tensor) -> Any:
    if isinstance(value, Tensor) and is_sharded(parameter) and value.shape == parameter.shape:
        return divided_like(value, parameter)
    return value
