"""The Triton kernels on CPU tensors; run by test_relation_kl_interpreted.py with TRITON_INTERPRET=1."""

import sys

import pytest
import torch
from interpreter import exact_products, one_patch_a_launch  # noqa: F401
from relation_oracle import Case, check, draw

from linearard.ops.relation_kl import attention_kl, relation_kl

SELF = [
    Case(1, 64),
    Case(41, 40, heads=3),
    Case(67, 80, batch=2, padding="left"),
    Case(130, 128, heads=1),
    Case(67, 64, heads=1, batch=2, padding="holes"),
    Case(67, 96, heads=1, causal=False),
    Case(41, 16, batch=2, padding="right", temperature=2.0),
    Case(41, 64, causal=False, padding="holes", strided=True),
]
ATTENTION = [
    Case(1, 40, heads=2, kv_heads=1),
    Case(41, 64, heads=4, kv_heads=2),
    Case(67, 80, heads=2, kv_heads=1),
    Case(41, 96, heads=2, kv_heads=2, batch=2, padding="right"),
    Case(67, 32, heads=3, kv_heads=1, padding="holes", temperature=0.5),
    Case(41, 128, heads=2, kv_heads=1, causal=False),
    Case(35, 40, heads=6, kv_heads=2, causal=False, padding="left", strided=True),
]


@pytest.mark.parametrize("case", SELF, ids=str)
def test_self_relation(case):
    check(case, "triton")


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_attention(case):
    check(case, "triton")


def test_self_float16():  # the interpreter has no bfloat16 products; the GPU tests have
    check(Case(67, 64, batch=2, padding="holes"), "triton", torch.float16)


def test_attention_float16():
    check(Case(67, 64, heads=2, kv_heads=1), "triton", torch.float16)


def test_self_and_attention_through_tensor_descriptors(monkeypatch):
    """The path of Hopper and later GPUs, whose loads fill with zeros by themselves."""
    for name in ("forward", "backward"):
        module = sys.modules[f"linearard.ops.relation_kl.triton.{name}"]
        monkeypatch.setattr(module, "tma_fits", lambda *operands: True)
    check(Case(41, 40, batch=2, padding="left"), "triton")
    check(Case(67, 64, heads=2, kv_heads=1, causal=False), "triton")
    check(Case(70, 32, heads=2, kv_heads=1), "triton", torch.float16)


def test_repeatable_self_and_attention():
    check(Case(67, 64, heads=1), "triton", repeats=1)
    check(Case(35, 64, heads=4, kv_heads=2, padding="holes"), "triton", repeats=1)


def test_attention_gradients_only_where_asked():
    q_t, k_t, q_s, k_s, _ = draw(Case(41, 16, heads=2, kv_heads=1), torch.float32, "cpu")
    expected = {}
    for leaves in ("both", "q", "k"):
        q = q_s.clone().requires_grad_(leaves != "k")
        k = k_s.clone().requires_grad_(leaves != "q")
        attention_kl(q_t, k_t, q, k, implementation="triton").backward()
        expected.setdefault("q", q.grad)
        expected.setdefault("k", k.grad)
        assert (q.grad is None) == (leaves == "k")
        assert (k.grad is None) == (leaves == "q")
        assert q.grad is None or torch.equal(q.grad, expected["q"])
        assert k.grad is None or torch.equal(k.grad, expected["k"])


def test_self_float16_weights_are_scaled_before_they_are_rounded():
    """g (P_s - P_t) may lie far below the smallest float16 where the gradient does not."""
    q_t, _, q_s, _, _ = draw(Case(67, 64), torch.float16, "cpu")
    grads = []
    for scale in (1.0, 2.0**-11):
        x = q_s.clone().requires_grad_()
        rows = relation_kl(q_t, x, reduction="none", implementation="triton")
        (gradient,) = torch.autograd.grad((rows * scale).sum(), x)
        grads.append(gradient.double() / scale)
    assert (grads[1] - grads[0]).norm() < 5e-3 * grads[0].norm()
