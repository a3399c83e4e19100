"""The Triton kernels on an NVIDIA GPU."""

import importlib.util
import sys

import pytest
import torch
from relation_oracle import Case, check, check_identical, check_repeatable, draw

from linearard.ops.relation_kl import attention_kl, relation_kl

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
]

CASES = [
    Case(1, 64),
    Case(41, 40, heads=3, batch=2),
    Case(401, 80, padding="left", batch=2),
    Case(1271, 128),
    Case(512, 128, padding="holes", batch=2),
    Case(640, 64, causal=False),
    Case(333, 96, causal=False, padding="right", batch=3, temperature=2.0),
    Case(300, 192),
    Case(257, 256, strided=True),
    Case(401, 64, heads=9, kv_heads=3),
    Case(1024, 128, heads=8, kv_heads=2, batch=2, padding="right"),
    Case(130, 256, heads=2, kv_heads=1),
    Case(777, 40, heads=4, kv_heads=1, causal=False, padding="holes", strided=True),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_twice_the_error_of_plain_pytorch(case, dtype):
    check(case, "triton", dtype, "cuda")


@pytest.mark.parametrize("case", [CASES[2], CASES[9]], ids=str)
def test_unaligned_operands_take_the_pointer_path(case, monkeypatch):
    for name in ("forward", "backward"):
        module = sys.modules[f"linearard.ops.relation_kl.triton.{name}"]
        monkeypatch.setattr(module, "tma_fits", lambda *operands: False)
    check(case, "triton", torch.bfloat16, "cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_identical_models_cost_nothing(dtype):
    check_identical("triton", dtype, "cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_two_runs_agree_to_the_bit(dtype):
    check_repeatable("triton", dtype, "cuda")


def test_long_runs_agree_to_the_bit():
    q_t, _, q_s, _, _ = draw(Case(4096, 128, heads=8), torch.bfloat16, "cuda")
    grads = []
    for _ in range(3):
        x = q_s.clone().requires_grad_()
        loss = relation_kl(q_t, x)
        grads.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
    for other in grads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads[0], other, strict=True))


def test_more_heads_than_a_grid_dimension_holds():
    teacher = torch.randn(2, 40000, 3, 16, device="cuda", dtype=torch.bfloat16)
    student = torch.randn_like(teacher).requires_grad_()
    rows = relation_kl(teacher, student, reduction="none")
    last = relation_kl(teacher[1:, -1:], student[1:, -1:], reduction="none")
    assert torch.equal(rows[1, -1], last[0, 0])
    rows.sum().backward()
    assert torch.isfinite(student.grad).all() and (student.grad[1, -1, 1:] != 0).any()


def test_default_choice_on_a_gpu():
    case = Case(67, 64)
    for dtype, same_as in ((torch.bfloat16, "triton"), (torch.float64, "chunked")):
        q_t, k_t, q_s, k_s, _ = draw(case, dtype, "cuda")
        chosen = attention_kl(q_t, k_t, q_s, k_s)
        assert torch.equal(chosen, attention_kl(q_t, k_t, q_s, k_s, implementation=same_as))


def test_chunked_on_a_gpu():
    check(Case(401, 80, heads=4, kv_heads=2, padding="right", batch=2), "chunked", device="cuda")
    check(Case(401, 64, padding="holes"), "chunked", torch.bfloat16, "cuda")
