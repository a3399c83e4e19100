"""Pointwise operations against autograd in float64; for plain PyTorch, the interpreter and a GPU.

Run by test_pointwise.py; the implementation and the device come from the environment, because Triton's
interpreter must be chosen before triton is first imported.
"""

import importlib
import os

import pytest
import torch

NAME = os.environ.get("POINTWISE", "plain")
DEVICE = os.environ.get("POINTWISE_DEVICE", "cpu")
ops = importlib.import_module(f"linearard.ops.pointwise.{NAME}")

#: Largest relative error of one rounding, times a little for sums.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2**-8 * 1.1, torch.float16: 2**-11 * 1.5}
if os.environ.get("TRITON_INTERPRET") == "1":
    from interpreter import one_patch_a_launch  # noqa: F401

    BOUNDS[torch.bfloat16] *= 2  # the interpreter cuts bits off where a GPU rounds to nearest
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def draw(*shape, dtype, seed=0):
    make = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, generator=make)).to(DEVICE, dtype)


def close(got, expected, dtype):
    """Each value within one rounding of its own size, or of a small part of the largest."""
    got, expected = got.double().cpu(), expected.detach().double().cpu()
    assert got.shape == expected.shape
    allowed = BOUNDS[dtype] * (expected.abs() + 0.02 * expected.abs().max())
    worst = ((got - expected).abs() - allowed).max()
    assert worst <= 0, float(worst)


def leaf(x):
    return x.detach().double().requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 7, 64), (3, 1, 576), (2, 130)])
@pytest.mark.parametrize("strided", [False, True])
def test_rms_norm(dtype, shape, strided):
    x = draw(*shape[:-1], 2 * shape[-1], dtype=dtype)[..., :: 2 if strided else 1]
    x = x[..., : shape[-1]]
    weight, slope = draw(shape[-1], dtype=dtype, seed=1), draw(*shape, dtype=dtype, seed=2)
    out, rstd = ops.rms_norm(x, weight, 1e-5)
    wide = leaf(x)
    expected_rstd = (wide.square().mean(-1, keepdim=True) + 1e-5) ** -0.5
    expected = wide * expected_rstd * weight.double()
    assert out.dtype == dtype and out.is_contiguous()
    close(out, expected, dtype)
    close(rstd, expected_rstd.flatten(), torch.float32)
    if strided:
        slope = slope.transpose(0, 1).contiguous().transpose(0, 1)
    got = ops.rms_norm_backward(slope, x, weight, rstd)
    assert got.dtype == dtype and got.is_contiguous()
    close(got, torch.autograd.grad(expected, wide, slope.double())[0], dtype)


def turned(x, cos, sin):
    """Pair (i, i + half) turned by its angle."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = cos.double()[:, :, None], sin.double()[:, :, None]
    return torch.cat(
        [
            first * cos[..., :half] - second * sin[..., :half],
            second * cos[..., half:] + first * sin[..., half:],
        ],
        -1,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 3, 8), (1, 7, 9, 64), (2, 3, 1, 10)])
@pytest.mark.parametrize("own_positions", [False, True])
def test_rotate(dtype, shape, own_positions):
    batch, tokens, _, width = shape
    rows = batch if own_positions else 1
    cos, sin = (draw(rows, tokens, width, dtype=dtype, seed=s) for s in (1, 2))  # any table at all
    x, slope = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=3)
    wide = leaf(x)
    expected = turned(wide, cos, sin)
    before = x.clone()
    out = ops.rotate(x, cos, sin)
    assert torch.equal(x, before) and out.is_contiguous() and out.dtype == dtype
    close(out, expected, dtype)
    heads_first = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(ops.rotate(heads_first, cos, sin), out)
    assert ops.rotate(heads_first, cos, sin, out=heads_first) is heads_first
    assert torch.equal(heads_first, out)
    (gradient,) = torch.autograd.grad(expected, wide, slope.double())
    got = ops.rotate_backward(slope.transpose(1, 2).contiguous().transpose(1, 2), cos, sin)
    assert got.is_contiguous()
    close(got, gradient, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5,), (2, 3, 700), (1, 2, 2048)])
def test_swiglu(dtype, shape):
    gate, up, slope = (draw(*shape, dtype=dtype, seed=s) for s in range(3))
    wide = [leaf(gate), leaf(up)]
    expected = wide[0] / (1 + (-wide[0]).exp()) * wide[1]
    close(ops.swiglu(gate, up), expected, dtype)
    gradients = torch.autograd.grad(expected, wide, slope.double())
    got = ops.swiglu_backward(slope, gate, up)
    assert got[0].data_ptr() == slope.data_ptr()
    for a, b in zip(got, gradients, strict=True):
        assert a.dtype == dtype
        close(a, b, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 7), (5, 130), (2, 9001)])
@pytest.mark.parametrize("partly", [False, True])
@pytest.mark.parametrize("loss", ["kl", "cross entropy"])
def test_losses_of_logits(dtype, shape, partly, loss):
    student = draw(*shape, dtype=dtype)
    counted = torch.arange(shape[0], device=DEVICE) % 2 == 0 if partly else None
    wide = leaf(student)
    log_q = wide.log_softmax(-1)
    if loss == "kl":
        teacher = draw(*shape, dtype=dtype, seed=1)
        log_p = teacher.double().log_softmax(-1)
        rows = (log_p.exp() * (log_p - log_q)).sum(-1)
        got = ops.kl_rows(teacher, student, counted)
    else:
        targets = torch.arange(shape[0], device=DEVICE) * 2 % shape[1]
        rows = -log_q.gather(1, targets[:, None])[:, 0]
        got = ops.cross_entropy_rows(student, targets, counted)
    if partly:
        rows = torch.where(counted, rows, 0.0)
    assert got.dtype == torch.float32
    # a sum of as many float32 terms as there are classes, in blocks
    torch.testing.assert_close(got.double(), rows.detach(), rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(rows.sum(), wide)
    # probabilities are differences of logarithms of a size of up to 20: 20 * 2^-23 each
    error = (student.double() - gradient).abs() - BOUNDS[dtype] * gradient.abs()
    assert error.max() < 5e-6 + (2**-24 if dtype == torch.float16 else 0)


def test_logits_that_exclude_classes():
    """-inf in the teacher costs nothing, and equal distributions have no KL and no gradient."""
    teacher = draw(2, 50, dtype=torch.float32)
    teacher[:, 7] = float("-inf")
    student = draw(2, 50, dtype=torch.float32, seed=1)
    wide = leaf(student)
    log_p, log_q = teacher.double().log_softmax(-1), wide.log_softmax(-1)
    terms = torch.where(log_p > -torch.inf, log_p.exp() * (log_p.clamp(min=-1e9) - log_q), 0.0)
    if NAME == "triton":  # plain PyTorch gives nan here, as it always did
        torch.testing.assert_close(
            ops.kl_rows(teacher, student, None).double(), terms.sum(-1).detach(), rtol=1e-5, atol=0
        )
    same = draw(2, 50, dtype=torch.float32)
    other = same.clone()
    assert ops.kl_rows(same, other, None).abs().max() < 1e-6
    assert other.abs().max() < 1e-7


@pytest.mark.parametrize("factor", [0.3, 1.0, 0.0, float("nan")])
def test_scale(factor):
    shapes = [(1,), (3, 5), (4097,), (0, 7), (2, 3, 4096)]
    tensors = [draw(*shape, dtype=d, seed=i) for d in DTYPES for i, shape in enumerate(shapes)]
    before = [x.clone() for x in tensors]
    ops.scale_(tensors, torch.tensor(factor, device=DEVICE))
    for x, y in zip(tensors, before, strict=True):
        if factor == 1:
            assert torch.equal(x, y)
        elif factor != factor:
            assert x.isnan().all()
        elif x.numel():
            close(x, y.double() * torch.tensor(factor).double(), x.dtype)
