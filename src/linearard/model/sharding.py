"""A model divided among processes (FSDP2): each holds its share of every layer, and gathers one when it runs.

PyTorch's `fully_shard` is used as it is. Each decoder layer is a unit of its own, the decoder is their root;
embedding, last norm and head, which are frozen and read outside the decoder, stay whole in every process.
One copy serves teacher and student here too: a view changes flags and tables, never a weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from linearard.capture import AttentionTap, StopForward
from linearard.errors import ModelError, RecipeError
from linearard.model.shares import is_sharded
from linearard.model.two_view_linear import TwoViewLinear

if TYPE_CHECKING:
    from linearard.model.restorable import RestorableModel


def shard(restorable: RestorableModel) -> None:
    """Divide the layers of a model among all processes of the default group; once, before it is called.

    Args:
        restorable: the same in every process, on the device of the process.

    Raises:
        ModelError: its layers are not of transformers' own kind.
        RecipeError: a weight outside of the layers is trained, or the weights are in 4 bits.
    """
    check_shardable(restorable)
    mesh, trained = shard_mesh(restorable.device), restorable.adapter.names()
    for index, layer in sorted(restorable.layers.layers.items()):
        shard_layer(layer, index, restorable.tap, mesh)
    finish_sharding(restorable, mesh, trained)


def shard_mesh(device: torch.device) -> Any:
    """All processes of the default group, among which layers are divided."""
    from torch.distributed.device_mesh import init_device_mesh

    size = torch.distributed.get_world_size()
    return init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))


def finish_sharding(restorable: RestorableModel, mesh: Any, trained: list[str]) -> None:
    """Make the decoder the root of its divided layers; what is outside of them stays whole.

    Args:
        restorable: a model all of whose layers are divided.
        mesh: of `shard_mesh`.
        trained: what `Adapter.names` was before.
    """
    from torch.distributed.fsdp import fully_shard

    outside = {p for p in restorable.model.parameters() if not is_sharded(p)}
    fully_shard(restorable.model.get_decoder(), mesh=mesh, ignored_params=outside)
    restorable.adapter.rebind(trained)


def shard_layer(layer: nn.Module, index: int, tap: AttentionTap, mesh: Any) -> None:
    """Divide one decoder layer; a pass that ends in it goes through the rest without computing."""
    from torch.distributed.fsdp import fully_shard

    for module in layer.modules():
        if isinstance(module, TwoViewLinear):
            module.originals_as_parameters()
    layer.forward = _Ending(layer.forward, index, tap)  # type: ignore[method-assign]
    fully_shard(layer, mesh=mesh, reshard_after_forward=True)


def check_shardable(restorable: RestorableModel) -> None:
    """Refuse a model that cannot be divided.

    Raises:
        ModelError, RecipeError: see `shard`.
    """
    model, found = restorable.model, restorable.layers.layers
    if len(found) != restorable.tap.num_layers:
        raise ModelError(
            expected="decoder layers of transformers' own kind, for model.sharded",
            got=f"{len(found)} of {restorable.tap.num_layers} in {type(model).__name__}",
            fix="Leave model.sharded out: every process then holds the whole model.",
        )
    if restorable.packed:
        raise RecipeError(
            expected="model.sharded without model.load_in_4bit",
            got="both; weights in 4 bits cannot be divided by rows",
            fix="Leave one of them out.",
        )
    inside = {id(p) for layer in found.values() for p in layer.parameters()}
    outside = [
        name for name, p in model.named_parameters() if p.requires_grad and id(p) not in inside
    ]
    if outside:
        raise RecipeError(
            expected="adapter.target_modules within the decoder's layers, for model.sharded",
            got=outside[0],
            fix="Leave embedding and head out of adapter.target_modules.",
        )


class _Ending:
    """A layer's forward in which a pass that ends early ends without an exception.

    `StopForward` would leave the wrapper of every layer that it came through in the middle of its work. So it
    is caught in the layer, and what the pass has reached goes on to the end as it is.
    """

    def __init__(self, forward: Any, index: int, tap: AttentionTap) -> None:
        self._forward, self._index, self._tap = forward, index, tap

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        ended = self._tap.ended_in
        if ended is not None and self._index > ended:
            return hidden_states.clone()
        try:
            return self._forward(hidden_states, *args, **kwargs)
        except StopForward:
            self._tap.ended_in = self._index
        reached = hidden_states.clone()
        # A gradient must come back into the layer's output, whose hook gathers its weights.
        return reached if reached.requires_grad else reached.requires_grad_(torch.is_grad_enabled())
