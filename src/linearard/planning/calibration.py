"""Measure the rates of this machine: products, attention, relations, elementwise passes, launching."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from linearard.capture.sdpa import causal_attention, preferred_backends
from linearard.counting.products import step_products, visible_pairs
from linearard.counting.shapes import ModelShape
from linearard.counting.step import Step
from linearard.distill import ObjectiveConfig, RestorationModule
from linearard.model import AdapterConfig, RestorableModel, resolve_device, resolve_dtype
from linearard.model.view_names import ORIGINAL
from linearard.ops.relation_kl import relation_kl
from linearard.planning.memory_traffic import step_traffic
from linearard.planning.rates import Rates, Speed

_PAPER = {"q": 1.0, "k": 1.0, "v": 1.0}


@dataclass(frozen=True)
class _Sizes:
    """What is measured: large enough to fill a GPU, small enough for a CPU."""

    rows: int  # of products, and tokens of a step
    sides: tuple[int, ...]  # the smaller sides of products
    tokens: tuple[int, ...]  # of attention and relations
    heads: int  # for the first; fewer for more tokens
    hidden: int  # of the model of a step
    rounds: int


_ON_GPU = _Sizes(8192, (256, 1024, 4096), (4096, 16384), 64, 2048, 5)
_ON_CPU = _Sizes(512, (64, 256, 1024), (512,), 4, 256, 3)
_STEADY = 0.25  # seconds that a GPU computes before it is measured, and while it is


def calibrate(device: torch.device | None = None) -> Rates:
    """Rates of a device, measured within a minute; nothing else should run on it.

    Args:
        device: default: the GPU if there is one, the CPU otherwise, where the rates are coarse.
    """
    device = resolve_device("auto") if device is None else device
    dtype = resolve_dtype("auto", device)
    sizes = _ON_GPU if device.type == "cuda" else _ON_CPU
    gemm, half = _products(device, dtype, sizes)
    attention, relation, windowed = _pairs(device, dtype, sizes)
    rates = Rates(
        device="cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        versions={"torch": torch.__version__},
        source="linearard plan --calibrate",
        gemm=gemm,
        gemm_half=half,
        attention=attention,
        relation=relation,
        bandwidth=_copying(device, sizes),
        host=_host(device, dtype),
        memory=float(torch.cuda.get_device_properties(device).total_memory)
        if device.type == "cuda"
        else 0.0,
        bus=_bus(device),
        windowed=windowed,
    )
    return _with_passes(rates, device, dtype, sizes)


def _seconds(run: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """Median time of a call, after two that do not count."""
    times = []
    for turn in range(rounds + 2):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        if turn >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _steady(run: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """Time of a call among many: what the host needs is hidden, and a GPU's clock is that of long work.

    A call by itself runs at a clock that the same kernels do not keep for half a second.
    """
    if device.type != "cuda":
        return _seconds(run, device, rounds)
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < _STEADY:
        for _ in range(4):
            run()
        _wait(device)
        calls += 4
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / calls / 1000


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _products(device: torch.device, dtype: torch.dtype, sizes: _Sizes) -> tuple[float, float]:
    """Rate of large products, and the side at which it halves: a line through the times a flop."""
    rows, points = sizes.rows, []
    for side in sizes.sides:
        x = torch.randn(rows, sizes.sides[-1], device=device, dtype=dtype)
        weight = torch.randn(side, sizes.sides[-1], device=device, dtype=dtype)
        spent = _steady(lambda x=x, w=weight: x @ w.mT, device, sizes.rounds)
        points.append((1 / side, spent / (2 * x.numel() * side)))
    mean_x, mean_y = (statistics.fmean(values) for values in zip(*points, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points)
    slope = max(0.0, slope / sum((x - mean_x) ** 2 for x, _ in points))
    fastest = min(y for _, y in points)
    flop = max(mean_y - slope * mean_x, 0.5 * fastest)
    return 1 / flop, slope / flop


def _pairs(
    device: torch.device, dtype: torch.dtype, sizes: _Sizes
) -> tuple[tuple[Speed, ...], tuple[Speed, ...], tuple[Speed, ...]]:
    """Causal attention, relation KL and attention in sliding windows, for two head_dim."""
    attention, relation, windowed = [], [], []

    def measure(
        run: Callable[..., Tensor], x: list[Tensor], slope: Tensor | None, work: int, again: int
    ) -> Speed:
        ahead = _steady(lambda: run(*x), device, sizes.rounds)
        both = _steady(lambda: torch.autograd.grad(run(*x), x, slope), device, sizes.rounds)
        return _speed(head_dim, tokens, work, ahead, both, again)

    for head_dim, tokens in itertools.product((64, 128), sizes.tokens):
        heads = sizes.heads * sizes.tokens[0] // tokens
        shape = (1, heads, tokens, head_dim)
        qkv = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]
        slope, teacher = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
        backends, window = preferred_backends(qkv[0], None), tokens // 4

        def attend(*qkv: Tensor, kernels: Any = backends) -> Tensor:
            with sdpa_kernel(kernels, set_priority=True):
                return torch.nn.functional.scaled_dot_product_attention(*qkv, is_causal=True)

        def compare(student: Tensor, teacher: Tensor = teacher) -> Tensor:
            return relation_kl(teacher, student)

        def look_back(*qkv: Tensor, window: int = window) -> Tensor:
            return causal_attention(*qkv, qkv[0].shape[-1] ** -0.5, window=window)

        pairs = 2 * heads * head_dim
        work = pairs * visible_pairs(tokens, None)
        attention.append(measure(attend, qkv, slope, work, again=5))
        relation.append(measure(compare, qkv[:1], None, work, again=4))
        if tokens == sizes.tokens[-1]:
            work, turned = pairs * visible_pairs(tokens, window), slope.transpose(1, 2).contiguous()
            windowed.append(measure(look_back, qkv, turned, work, again=5))
    return tuple(attention), tuple(relation), tuple(windowed)


def _speed(head_dim: int, tokens: int, work: int, ahead: float, both: float, again: int) -> Speed:
    back = max(both - ahead, 0.1 * both)
    return Speed(head_dim, tokens, forward=2 * work / ahead, backward=again * work / back)


def _copying(device: torch.device, sizes: _Sizes) -> float:
    """Bytes a second of one pass that reads and writes."""
    x = torch.empty(sizes.rows * sizes.hidden, device=device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / _steady(lambda: torch.add(x, 1.0, out=y), device, sizes.rounds)


def _bus(device: torch.device) -> float:
    """Bytes a second to the device and back, from and to pinned memory."""
    if device.type != "cuda":
        return 0.0
    host = torch.empty(2**26, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(host, device=device)

    def both() -> None:
        there.copy_(host, non_blocking=True)
        host.copy_(there, non_blocking=True)

    return 2 * host.nbytes / _seconds(both, device, 3)


def _model(
    device: torch.device, dtype: torch.dtype, hidden: int, layers: int, rank: int
) -> RestorableModel:
    """A Llama with random weights and heads of 64."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3 // 64 * 64 or hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=4096,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    adapter = AdapterConfig(r=rank, alpha=float(rank), dropout=0.0)
    restorable = RestorableModel(model, None, {"rope_type": "linear", "factor": 8}, adapter)
    restorable.model.to(device)
    return restorable


def _step(
    restorable: RestorableModel, objective: ObjectiveConfig, ids: Tensor
) -> Callable[[], None]:
    """Forward and backward of one batch."""
    module = RestorationModule(restorable, objective).train()
    dtype = next(restorable.model.parameters()).dtype
    mixed = dtype != torch.float32

    def step() -> None:
        with (
            restorable.adapter.without_casts(),
            torch.autocast(ids.device.type, dtype if mixed else None, enabled=mixed),
        ):
            loss = module(ids)["loss"]
        loss.backward()
        restorable.model.zero_grad(set_to_none=True)

    return step


def _host(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Seconds a layer in which nothing but launching takes time: a model of next to no work."""
    layers = 6
    restorable = _model(device, dtype, 128, layers, 8)
    ids = torch.zeros(1, 64, dtype=torch.int64, device=device)

    def teacher() -> None:
        with torch.no_grad(), restorable.view(ORIGINAL):
            restorable.model.get_decoder()(input_ids=ids, use_cache=False)

    read = _seconds(teacher, device, 5)
    alone = ObjectiveConfig(relations={}, lm_weight=1.0)
    learn = _seconds(_step(restorable, alone, ids), device, 5)
    together = _seconds(_step(restorable, ObjectiveConfig(relations=_PAPER), ids), device, 5)
    parameters = restorable.adapter.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=device.type == "cuda")

    def update() -> None:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        torch.isfinite(torch.nn.utils.get_total_norm([p.grad for p in parameters])).item()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()

    return {
        "optimizer": _seconds(update, device, 5) / len(parameters),
        "teacher": read / layers,
        "student": learn / layers,
        "relation": max(0.0, together - read - learn) / (layers * len(_PAPER)),
    }


def _with_passes(rates: Rates, device: torch.device, dtype: torch.dtype, sizes: _Sizes) -> Rates:
    """Bandwidth as a real step has it: its bytes over the time that its products leave."""
    from dataclasses import replace

    restorable = _model(device, dtype, sizes.hidden, 2, 64)
    tokens = sizes.tokens[0] // 2
    batch = max(1, sizes.rows // sizes.tokens[0])
    ids = torch.zeros(batch, tokens, dtype=torch.int64, device=device)
    objective = ObjectiveConfig(relations={}, lm_weight=1.0)
    step = _step(restorable, objective, ids)
    spent = _busy(step) if device.type == "cuda" else _seconds(step, device, sizes.rounds)
    shape = ModelShape.of(restorable.config, restorable.adapter.config)
    fused = device.type == "cuda" and dtype != torch.float32
    work = Step(shape, objective, tokens, batch, native_window=4096, fused=fused)
    passed = sum(step_traffic(work).values())
    left = spent - sum(map(rates.seconds, step_products(work)))
    # Never faster than a plain pass, and no more than ten times slower.
    copied = rates.bandwidth
    found = passed / left if left > 0 else copied
    return replace(rates, bandwidth=min(copied, max(copied / 10, found)))


def _busy(step: Callable[[], None]) -> float:
    """Seconds of all kernels of one step, whatever the host's pace."""
    from torch.profiler import ProfilerActivity, profile

    _steady(step, torch.device("cuda"), 1)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as record:
        step()
        torch.cuda.synchronize()
    kernels = record.key_averages()
    on_device = [e for e in kernels if e.device_type == torch.autograd.DeviceType.CUDA]
    return sum(kernel.self_device_time_total for kernel in on_device) / 1e6
