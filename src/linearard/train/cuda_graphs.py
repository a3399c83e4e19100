"""Forward and backward of a batch as one CUDA graph.

A step of a small model is thousands of short kernels, and starting them one by one takes longer than
running them. After two plain steps of a kind (same shapes, same part) the third is recorded, and from
then on replayed with new tokens.

A graph writes to fixed addresses. Where a step is one batch, the first graph's own results are the gradients:
nothing is set to zero and added to. Every other graph adds to what the first has written, or to buffers.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from linearard.train.random_state import RandomState

_LOGGER = logging.getLogger(__name__)
_PLAIN_STEPS = 2  # compile kernels, build plans, fill caches


@dataclass
class _Kind:
    """Batches that one graph can serve."""

    plain: int = 0
    trained: list[nn.Parameter] = field(default_factory=list)  # those that got a gradient
    written: dict[nn.Parameter, Tensor] = field(default_factory=dict)  # the graph's own gradients
    graph: Any = None
    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


def find_gradients(loss: Tensor, parameters: Iterable[nn.Parameter]) -> None:
    """`loss.backward()`, whose gradients are not copied where parameters have none yet.

    `backward` makes a copy of a gradient that anything else still refers to, Python's frames included.

    Args:
        loss: a scalar.
        parameters: all that learn.
    """
    parameters = list(parameters)
    if any(parameter.grad is not None for parameter in parameters):
        loss.backward()  # adds one by one, and so never holds all gradients twice
        return
    taken: set[int] = set()
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, found, strict=True):
        if gradient is None:
            continue
        if gradient.data_ptr() in taken or gradient.stride() != parameter.stride():
            gradient = torch.empty_like(parameter).copy_(gradient)
        taken.add(gradient.data_ptr())
        parameter.grad = gradient


class GradientBuffers:
    """Gradients at fixed addresses: what a graph adds to, step after step."""

    def __init__(self) -> None:
        self._buffers: dict[nn.Parameter, Tensor] = {}

    def __contains__(self, parameter: nn.Parameter) -> bool:
        return parameter in self._buffers

    def keep(self, gradients: dict[nn.Parameter, Tensor]) -> None:
        """Take these as the buffers of their parameters."""
        self._buffers |= gradients

    def adopt(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make the buffers the parameters' gradients, with the same values; None becomes zeros."""
        parameters, absent = list(parameters), []
        for parameter in parameters:  # all of them before any is in use: memory may end here
            if parameter not in self._buffers:
                self._buffers[parameter] = torch.empty_like(parameter)
        for parameter in parameters:
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
        worth: whether a batch, given as its inputs, is to be recorded; default: every one.
    """

    def __init__(
        self,
        run: Callable[..., dict[str, Tensor]],
        parameters: Iterable[nn.Parameter],
        worth: Callable[[dict[str, Any]], bool] = lambda inputs: True,
    ) -> None:
        self._run, self._parameters, self._worth = run, list(parameters), worth
        self._buffers = GradientBuffers()
        self._kinds: dict[Hashable, _Kind] = {}
        self._pool: Any = None
        self._works = True

    @property
    def graphs(self) -> int:
        """How many graphs have been recorded."""
        return sum(kind.graph is not None for kind in self._kinds.values())

    def __call__(self, inputs: dict[str, Any], batches: int = 1) -> dict[str, Tensor]:
        """Outputs of `run` on this batch.

        Args:
            inputs: tensors on the device, and plain values.
            batches: of a step. `run` may depend on it. Of one, gradients need no memory beside the graph's.
        """
        described = ((name, _describe(value)) for name, value in sorted(inputs.items()))
        kind = self._kinds.setdefault((*described, batches), _Kind())
        due = kind.graph is None and self._works and kind.plain >= _PLAIN_STEPS
        if due and self._worth(inputs):
            self._record(kind, inputs, alone=batches == 1)
        if kind.graph is None:
            return self._plainly(kind, inputs)
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                kind.inputs[name].copy_(value)
        self._move_out()
        earlier = {p: p.grad for p in kind.written if p.grad is not None}
        self._buffers.adopt(p for p in kind.trained if p not in kind.written)
        kind.graph.replay()
        for parameter, gradient in kind.written.items():
            parameter.grad = gradient
            if parameter in earlier:
                gradient += earlier[parameter]
        return {name: output.clone() for name, output in kind.outputs.items()}

    def release(self) -> None:
        """Give the graphs' memory back."""
        self._kinds.clear()
        self._buffers, self._pool = GradientBuffers(), None

    def _move_out(self) -> None:
        """Keep what earlier batches of a step have left in memory that the graphs share."""
        for kind in self._kinds.values():
            for parameter, gradient in kind.written.items():
                if parameter.grad is gradient:
                    parameter.grad = gradient.clone()

    def _plainly(self, kind: _Kind, inputs: dict[str, Any]) -> dict[str, Tensor]:
        kind.plain += 1
        if not self._works:
            return self._run(**inputs)
        before = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        outputs = self._run_apart(inputs)
        kind.trained = [p for p in self._parameters if p.grad is not None]
        for parameter, earlier in zip(self._parameters, before, strict=True):
            if parameter.grad is None:
                parameter.grad = earlier
            elif earlier is not None:
                parameter.grad += earlier
        return outputs

    def _run_apart(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Run a batch that is not recorded; where recordings of others leave it no room, without them."""
        random_state = RandomState() if self.graphs else None
        try:
            with _recording_stream():
                return self._run(**inputs)
        except torch.OutOfMemoryError:
            if random_state is None:
                raise
        # Here the exception is gone, and with it all that the failed pass held.
        self._works = False
        self.release()
        for parameter in self._parameters:
            parameter.grad = None
        gc.collect()
        torch.cuda.empty_cache()
        random_state.restore()
        _LOGGER.warning(
            "No CUDA graphs in this stage: other batches need the memory that they hold"
        )
        return self._run(**inputs)

    def _record(self, kind: _Kind, inputs: dict[str, Any], alone: bool) -> None:
        fresh = {p for p in kind.trained if alone and p.grad is None and p not in self._buffers}
        gc.collect()  # not while a graph is recorded
        outer = torch.cuda.current_stream() if torch.cuda.is_available() else None
        try:
            kind.inputs = {
                name: value.clone() if isinstance(value, Tensor) else value
                for name, value in inputs.items()
            }
            # recording runs nothing: the values stay
            self._buffers.adopt(p for p in kind.trained if p not in fresh)
            graph = torch.cuda.CUDAGraph()
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            # Other threads (a data loader that pins memory) may call what a recording thread may not.
            mode = "thread_local"
            options = {"pool": self._pool, "stream": _stream(), "capture_error_mode": mode}
            with torch.cuda.graph(graph, **options):
                kind.outputs = self._run(**kind.inputs)
        except RuntimeError as error:
            self._give_up(outer)
            _LOGGER.warning("No CUDA graphs in this stage: %s", _reason(error))
        else:
            kind.graph = graph
            kind.written = {p: p.grad for p in fresh if p.grad is not None}
            self._buffers.keep(kind.written)
        for parameter in fresh:
            parameter.grad = None  # nothing has been computed yet

    def _give_up(self, outer: Any) -> None:
        """Go on without graphs: one that was recorded before cannot be replayed."""
        self._works = False
        for kind in self._kinds.values():
            kind.graph, kind.inputs, kind.outputs, kind.written = None, {}, {}, {}
        self._buffers = GradientBuffers()
        pool, self._pool = self._pool, None
        if outer is not None:
            _clear_marks(outer, pool)


def recorded(step: Callable[[], None]) -> Callable[[], None] | None:
    """Record a step without gradients as a graph, and give what replays it; recording runs nothing.

    Args:
        step: reads and writes tensors that stay where they are. It has run before as it is.

    Returns:
        None where there is no GPU, or the step cannot be recorded.
    """
    if not torch.cuda.is_available():
        return None
    outer, pool = torch.cuda.current_stream(), torch.cuda.graph_pool_handle()
    graph = torch.cuda.CUDAGraph()
    options = {"pool": pool, "stream": _stream(), "capture_error_mode": "thread_local"}
    try:
        with torch.cuda.graph(graph, **options):
            step()
    except RuntimeError as error:
        _clear_marks(outer, pool)
        _LOGGER.info("No CUDA graph of a step that draws tokens: %s", _reason(error))
        return None
    return graph.replay


def _clear_marks(outer: Any, pool: Any) -> None:
    """Undo what a recording that CUDA has ended leaves behind.

    Before torch 2.12 the process stays on the recording's stream, and the generator of random numbers and
    the allocator take it to be recording still.
    """
    torch.cuda.set_stream(outer)
    device = torch.cuda.current_device()
    generator = torch.cuda.default_generators[device]
    generator.graphsafe_set_state(generator.clone_state())  # a clone is not recording
    if pool is not None:
        with contextlib.suppress(RuntimeError):  # already ended
            torch._C._cuda_endAllocateToPool(device, pool)
    torch.cuda.empty_cache()


@functools.cache
def _stream() -> Any:
    return torch.cuda.Stream()


@contextlib.contextmanager
def _recording_stream() -> Iterator[None]:
    """The stream that steps are recorded on, between what was asked for before and after.

    A weight's node of the autograd graph belongs to the stream on which it was made, and lives as long as
    any graph that it is in. One made on another stream than the recording's would break the recording.
    """
    if not torch.cuda.is_available():
        yield
        return
    outer = torch.cuda.current_stream()
    _stream().wait_stream(outer)
    with torch.cuda.stream(_stream()):
        yield
    outer.wait_stream(_stream())


def _reason(error: BaseException) -> str:
    """The first line of the first error: those behind it only say that something failed before."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _describe(value: Any) -> Hashable:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value
