"""Operations of a training step, each a function that does the same again: forward and backward pass."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from linearard.capture.sdpa import causal_attention, with_contiguous_gradient
from linearard.errors import UserError
from linearard.ops import pointwise
from linearard.ops.relation_kl import attention_kl, relation_kl
from linearard.train.determinism import deterministic_algorithms

_BACKENDS = {
    "flash attention": SDPBackend.FLASH_ATTENTION,
    "cuDNN's attention": SDPBackend.CUDNN_ATTENTION,
    "memory-efficient attention": SDPBackend.EFFICIENT_ATTENTION,
    "attention written out": SDPBackend.MATH,
}
_HEADS, _KV_HEADS, _WIDTH = 8, 4, 64
Call = Callable[[], list[Tensor]]


def distinct_results(device: str, calls: int) -> dict[str, dict[str, Any]]:
    """By operation, how many different results so many calls give: in any order, and deterministic.

    A text stands where an operation does not run.
    """
    found: dict[str, dict[str, Any]] = {}
    # Deterministic first: cuBLAS decides once a process.
    for mode, wanted in (("deterministic", True), ("any_order", False)):
        with deterministic_algorithms(wanted, torch.device(device)):
            for name, call in _operations(device).items():
                found.setdefault(name, {})[mode] = _distinct(call, calls, device)
    return found


def _distinct(call: Call, calls: int, device: str) -> int | str:
    hashes = set()
    try:
        for number in range(calls):
            with _beside(device, number):
                results = call()
            whole = hashlib.sha256()
            for tensor in results:
                whole.update(tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy())
            hashes.add(whole.hexdigest())
    except (RuntimeError, UserError) as error:  # not on this device, or not in this mode
        return " ".join(str(error).split())[:100]
    return len(hashes)


@contextlib.contextmanager
def _beside(device: str, number: int) -> Iterator[None]:
    """Other products on the device at the same time, in other memory each time."""
    if device != "cuda":
        yield
        return
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        size = 256 * (1 + number % 5)
        x = torch.ones(size, size, device=device)
        for _ in range(8):
            x @ x
    yield
    torch.cuda.synchronize()


def _operations(device: str) -> dict[str, Call]:
    on_gpu = device == "cuda"
    make = torch.Generator(device).manual_seed(0)
    tokens, dtype = (2048, torch.bfloat16) if on_gpu else (64, torch.float32)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=make, device=device, dtype=dtype)

    q, k, v = (draw(2, heads, tokens, _WIDTH) for heads in (_HEADS, _KV_HEADS, _KV_HEADS))
    q_s, k_s = q + 0.1 * draw(*q.shape), k + 0.1 * draw(*k.shape)
    upstream = draw(2, tokens, _HEADS, _WIDTH)
    x, weight = draw(2 * tokens, 512), draw(512)
    matrix, ids = draw(256, 512), torch.randint(512, (2 * tokens,), generator=make, device=device)

    def attention(backend: SDPBackend) -> list[Tensor]:
        operands = _leaves(q, k, v)
        with sdpa_kernel(backend):
            output = functional.scaled_dot_product_attention(
                *operands, is_causal=True, enable_gqa=True
            )
        output = with_contiguous_gradient(output.transpose(1, 2).contiguous())
        return _both(output, operands, upstream)

    def windows() -> list[Tensor]:
        operands = _leaves(q, k, v)
        return _both(causal_attention(*operands, 0.125, window=tokens // 8), operands, upstream)

    def relations(**options: Any) -> list[Tensor]:
        queries, keys = operands = _leaves(q_s, k_s)
        one = relation_kl(q, queries, **options)
        return _both(one + attention_kl(q, k, queries, keys, **options), operands)

    def fused() -> list[Tensor]:
        normed, rstd = pointwise.rms_norm(x, weight, 1e-6)
        back = pointwise.rms_norm_backward(x, normed, weight, rstd)
        gated = pointwise.swiglu(x, normed)
        slope = x.clone()
        rows = pointwise.kl_rows(back.contiguous(), slope, None)
        return [normed, back, gated, slope, rows]

    def norms() -> list[Tensor]:
        operands = _leaves(x, weight)
        output = functional.rms_norm(operands[0], (512,), operands[1])
        return _both(output, operands, x)

    def lookups() -> list[Tensor]:
        operands = _leaves(matrix.T.contiguous(), x)
        output = functional.embedding(ids, operands[0])
        return _both(output.sum() + operands[1][ids % 128][:, :9].square().sum(), operands)

    def products() -> list[Tensor]:
        operands = _leaves(x, matrix)
        return _both(functional.linear(*operands).square().mean(), operands)

    return {
        **{name: lambda b=backend: attention(b) for name, backend in _BACKENDS.items()},
        "attention in sliding windows": windows,
        "relation KL, Hopper's kernels": lambda: relations(implementation="hopper"),
        "relation KL, Hopper's in any order": lambda: relations(
            implementation="hopper", deterministic=False
        ),
        "relation KL, Triton's kernels": lambda: relations(implementation="triton"),
        "fused norm, gate and KL of logits": fused,
        "RMS norm of PyTorch, with its weight": norms,
        "embedding and indexing": lookups,
        "matrix products": products,
    }


def _leaves(*tensors: Tensor) -> list[Tensor]:
    return [x.clone().requires_grad_() for x in tensors]


def _both(output: Tensor, operands: list[Tensor], upstream: Tensor | None = None) -> list[Tensor]:
    """The output and the gradients of its operands."""
    return [output, *torch.autograd.grad(output, operands, upstream)]
