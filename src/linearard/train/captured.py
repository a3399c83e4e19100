"""Forward and backward of a batch as one CUDA graph.

A step of a small model is thousands of short kernels, and starting them one by one takes longer than
running them. After two plain steps of a kind (same shapes, same part) the third is recorded, and from
then on replayed with new tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_LOGGER = logging.getLogger(__name__)
_PLAIN_STEPS = 2  # compile kernels, build plans, fill caches


@dataclass
class _Kind:
    """Batches that one graph can serve."""

    plain: int = 0
    trained: list[nn.Parameter] = field(default_factory=list)  # those that got a gradient
    graph: Any = None
    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


class GradientBuffers:
    """Gradients at fixed addresses: what a graph adds to, step after step."""

    def __init__(self) -> None:
        self._buffers: dict[nn.Parameter, Tensor] = {}

    def adopt(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make the buffers the parameters' gradients, with the same values; None becomes zeros."""
        absent = []
        for parameter in parameters:
            if parameter not in self._buffers:
                self._buffers[parameter] = torch.empty_like(parameter)
            buffer = self._buffers[parameter]
            if parameter.grad is None:
                absent.append(buffer)
            elif parameter.grad is not buffer:
                buffer.copy_(parameter.grad)
            parameter.grad = buffer
        if absent:
            torch._foreach_zero_(absent)


class CapturedSteps:
    """Runs batches plainly, then as graphs.

    Args:
        run: forward and backward of a batch, given as keyword arguments; adds to the parameters' `grad`
            and returns detached tensors. Nothing in it may wait for the device or depend on values.
        parameters: what is trained.
    """

    def __init__(
        self, run: Callable[..., dict[str, Tensor]], parameters: Iterable[nn.Parameter]
    ) -> None:
        self._run, self._parameters = run, list(parameters)
        self._buffers = GradientBuffers()
        self._kinds: dict[Hashable, _Kind] = {}
        self._pool: Any = None
        self._works = True

    @property
    def graphs(self) -> int:
        """How many graphs have been recorded."""
        return sum(kind.graph is not None for kind in self._kinds.values())

    def __call__(self, inputs: dict[str, Any], state: Hashable = None) -> dict[str, Tensor]:
        """Outputs of `run` on this batch.

        Args:
            inputs: tensors on the device, and plain values.
            state: whatever else changes what `run` does.
        """
        described = ((name, _describe(value)) for name, value in sorted(inputs.items()))
        kind = self._kinds.setdefault((*described, state), _Kind())
        if kind.graph is None and self._works and kind.plain >= _PLAIN_STEPS:
            self._record(kind, inputs)
        if kind.graph is None:
            return self._plainly(kind, inputs)
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                kind.inputs[name].copy_(value)
        self._buffers.adopt(kind.trained)
        kind.graph.replay()
        return {name: output.clone() for name, output in kind.outputs.items()}

    def release(self) -> None:
        """Give the graphs' memory back."""
        self._kinds.clear()
        self._pool = None

    def _plainly(self, kind: _Kind, inputs: dict[str, Any]) -> dict[str, Tensor]:
        kind.plain += 1
        if not self._works:
            return self._run(**inputs)
        before = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        outputs = self._run(**inputs)
        kind.trained = [p for p in self._parameters if p.grad is not None]
        for parameter, earlier in zip(self._parameters, before, strict=True):
            if parameter.grad is None:
                parameter.grad = earlier
            elif earlier is not None:
                parameter.grad += earlier
        return outputs

    def _record(self, kind: _Kind, inputs: dict[str, Any]) -> None:
        kind.inputs = {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }
        self._buffers.adopt(kind.trained)  # recording runs nothing: the values stay
        try:
            graph = torch.cuda.CUDAGraph()
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            # Other threads (a data loader that pins memory) may call what a recording thread may not.
            mode = "thread_local"
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode=mode):
                kind.outputs = self._run(**kind.inputs)
        except RuntimeError as error:
            self._works = False
            kind.inputs, kind.outputs = {}, {}
            torch.cuda.empty_cache()
            reason = str(error).strip().splitlines()[0]
            _LOGGER.warning("No CUDA graphs in this stage: %s", reason)
        else:
            kind.graph = graph


def _describe(value: Any) -> Hashable:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value
