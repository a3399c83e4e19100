"""Gradients clipped to a norm, as PyTorch does it."""

import pytest
import torch
from torch import nn

from linearard.train.clipping import clip_gradients


@pytest.mark.parametrize("size", [0.1, 30.0, float("inf")])
def test_as_pytorch_clips(size):
    parameters = [nn.Parameter(torch.zeros(n, 3)) for n in (1, 7, 40)]
    for seed, parameter in enumerate(parameters[:2]):  # the third has no gradient
        make = torch.Generator().manual_seed(seed)
        parameter.grad = torch.randn(parameter.shape, generator=make)
        parameter.grad[0, 0] = size
    before = [p.grad.clone() for p in parameters[:2]]
    norm = clip_gradients(parameters, 5.0)
    wide = torch.cat([x.double().flatten() for x in before]).norm()
    torch.testing.assert_close(norm.double(), wide, rtol=1e-6, atol=0)
    share = min(1.0, 5.0 / float(wide))
    for parameter, x in zip(parameters, before, strict=False):
        expected = (share * x.double()).float()
        torch.testing.assert_close(parameter.grad, expected, equal_nan=True)
    assert parameters[2].grad is None


def test_nothing_to_clip():
    assert float(clip_gradients([nn.Parameter(torch.zeros(2))], 5.0)) == 0
