"""Measure the rates of this machine: products, attention, relations, elementwise passes, launching."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from linearard.capture.sdpa import preferred_backends
from linearard.counting.products import step_products, visible_pairs
from linearard.counting.shapes import ModelShape
from linearard.distill import ObjectiveConfig, RestorationModule
from linearard.model import AdapterConfig, RestorableModel, resolve_device, resolve_dtype
from linearard.ops.relation_kl import relation_kl
from linearard.planning.rates import Rates, Speed
from linearard.planning.traffic import step_traffic

_PAPER = {"q": 1.0, "k": 1.0, "v": 1.0}


@dataclass(frozen=True)
class _Sizes:
    """What is measured: large enough to fill a GPU, small enough for a CPU."""

    rows: int  # of products, and tokens of a step
    sides: tuple[int, ...]  # the smaller sides of products
    tokens: int  # of attention and relations
    heads: int
    hidden: int  # of the model of a step
    rounds: int


_ON_GPU = _Sizes(8192, (256, 1024, 4096), 4096, 16, 2048, 5)
_ON_CPU = _Sizes(512, (64, 256, 1024), 512, 4, 256, 3)


def calibrate(device: torch.device | None = None) -> Rates:
    """Rates of a device, measured within a minute; nothing else should run on it.

    Args:
        device: default: the GPU if there is one, the CPU otherwise, where the rates are coarse.
    """
    device = resolve_device("auto") if device is None else device
    dtype = resolve_dtype("auto", device)
    sizes = _ON_GPU if device.type == "cuda" else _ON_CPU
    gemm, half = _products(device, dtype, sizes)
    attention, relation = _pairs(device, dtype, sizes)
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


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _products(device: torch.device, dtype: torch.dtype, sizes: _Sizes) -> tuple[float, float]:
    """Rate of large products, and the side at which it halves: a line through the times a flop."""
    rows, points = sizes.rows, []
    for side in sizes.sides:
        x = torch.randn(rows, sizes.sides[-1], device=device, dtype=dtype)
        weight = torch.randn(side, sizes.sides[-1], device=device, dtype=dtype)
        spent = _seconds(lambda x=x, w=weight: x @ w.mT, device, sizes.rounds)
        points.append((1 / side, spent / (2 * x.numel() * side)))
    mean_x, mean_y = (statistics.fmean(values) for values in zip(*points, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points)
    slope = max(0.0, slope / sum((x - mean_x) ** 2 for x, _ in points))
    fastest = min(y for _, y in points)
    flop = max(mean_y - slope * mean_x, 0.5 * fastest)
    return 1 / flop, slope / flop


def _pairs(
    device: torch.device, dtype: torch.dtype, sizes: _Sizes
) -> tuple[tuple[Speed, ...], tuple[Speed, ...]]:
    """Causal attention and relation KL, forward and backward, for two head_dim."""
    attention, relation = [], []
    for head_dim in (64, 128):
        shape = (1, sizes.heads, sizes.tokens, head_dim)
        q, k, v = (
            torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3)
        )
        slope = torch.randn(shape, device=device, dtype=dtype)
        backends = preferred_backends(q, None)

        def attend(q: Tensor = q, k: Tensor = k, v: Tensor = v, kernels: Any = backends) -> Tensor:
            with sdpa_kernel(kernels, set_priority=True):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

        def compare(q: Tensor = q, k: Tensor = k) -> Tensor:
            return relation_kl(k.detach(), q)

        work = 2 * sizes.heads * visible_pairs(sizes.tokens, None) * head_dim
        ahead = _seconds(attend, device, sizes.rounds)
        both = _seconds(lambda a=attend, s=slope: a().backward(s), device, sizes.rounds)
        attention.append(_speed(head_dim, sizes.tokens, work, ahead, both, again=5))
        ahead = _seconds(compare, device, sizes.rounds)
        both = _seconds(lambda c=compare: c().backward(), device, sizes.rounds)
        relation.append(_speed(head_dim, sizes.tokens, work, ahead, both, again=4))
    return tuple(attention), tuple(relation)


def _speed(head_dim: int, tokens: int, work: int, ahead: float, both: float, again: int) -> Speed:
    back = max(both - ahead, 0.1 * both)
    return Speed(head_dim, tokens, forward=2 * work / ahead, backward=again * work / back)


def _copying(device: torch.device, sizes: _Sizes) -> float:
    """Bytes a second of one pass that reads and writes."""
    x = torch.empty(sizes.rows * sizes.hidden, device=device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / _seconds(lambda: torch.add(x, 1.0, out=y), device, sizes.rounds)


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
        restorable.tap.observe(None)
        restorable.model.zero_grad(set_to_none=True)

    return step


def _host(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Seconds a layer in which nothing but launching takes time: a model of next to no work."""
    layers = 6
    restorable = _model(device, dtype, 128, layers, 8)
    ids = torch.zeros(1, 64, dtype=torch.int64, device=device)

    def teacher() -> None:
        with torch.no_grad(), restorable.view("original"):
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
    tokens, batch = sizes.tokens // 2, max(1, sizes.rows // sizes.tokens)
    ids = torch.zeros(batch, tokens, dtype=torch.int64, device=device)
    objective = ObjectiveConfig(relations={}, lm_weight=1.0)
    step = _step(restorable, objective, ids)
    spent = _busy(step) if device.type == "cuda" else _seconds(step, device, sizes.rounds)
    shape = ModelShape.of(restorable.config, restorable.adapter.config)
    work = (shape, objective, tokens, batch)
    fused = device.type == "cuda" and dtype != torch.float32
    products = step_products(*work, native_window=4096, fused=fused)
    passed = sum(step_traffic(*work, native_window=4096, fused=fused).values())
    left = spent - sum(map(rates.seconds, products))
    # Never faster than a plain pass, and no more than ten times slower.
    copied = rates.bandwidth
    found = passed / left if left > 0 else copied
    return replace(rates, bandwidth=min(copied, max(copied / 10, found)))


def _busy(step: Callable[[], None]) -> float:
    """Seconds of all kernels of one step, whatever the host's pace."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(2):
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as record:
        step()
        torch.cuda.synchronize()
    kernels = record.key_averages()
    on_device = [e for e in kernels if e.device_type == torch.autograd.DeviceType.CUDA]
    return sum(kernel.self_device_time_total for kernel in on_device) / 1e6
