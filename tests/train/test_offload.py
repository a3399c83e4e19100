"""What offloading must not change."""

import copy

import pytest
import torch
from torch import nn

import small_run
from linearard.train.offload import OffloadedAdamW

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
        ],
    ),
]

SHAPES = ((5, 3), (801, 1203), (4,), (1203, 801), (801, 1203), (7,))  # copies of some take a while


def train(optimizer, parameters, steps, first=0):
    for number in range(first, first + steps):
        make = torch.Generator().manual_seed(number)
        for index, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=make).to(parameter.device)
            parameter.grad = None if (number + index) % 3 == 0 else gradient
        optimizer.step()


def pair(device):
    made = []
    for kind in (torch.optim.AdamW, OffloadedAdamW):
        make = torch.Generator().manual_seed(7)
        weights = [nn.Parameter(torch.randn(s, generator=make).to(device)) for s in SHAPES]
        groups = [{"params": weights[:2]}, {"params": weights[2:], "weight_decay": 0.1}]
        options = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.0}
        made.append((kind(groups, **options), weights))
    return made


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_steps_as_adamw(device):
    (plain, expected), (offloaded, weights) = pair(device)
    train(plain, expected, 7)
    train(offloaded, weights, 4)
    stored = copy.deepcopy(offloaded.state_dict())
    assert all(s["exp_avg"].device.type == "cpu" for s in stored["state"].values())
    _, (again, others) = pair(device)
    with torch.no_grad():
        for to, of in zip(others, weights, strict=True):
            to.copy_(of)
    again.load_state_dict(stored)
    assert all(s["exp_avg"].device.type == "cpu" for s in again.state.values())
    for optimizer, some in ((offloaded, weights), (again, others)):
        train(optimizer, some, 3, first=4)
        for got, want in zip(some, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def test_a_run_with_everything_offloaded(tmp_path, base_folder):
    """The same losses and weights, and a resume from a checkpoint."""
    options = {
        "objective": {"relations": {"q": 1, "k": 1, "v": 1, "qk": 1}},
        "sequences": 6,
        "save_steps": 3,
    }
    plain = small_run.train(small_run.one_stage(tmp_path / "a", base_folder, **options))
    recipe = small_run.one_stage(
        tmp_path / "b", base_folder, offload_optimizer=True, offload_teacher=True, **options
    )
    offloaded = small_run.train(recipe)
    assert small_run.losses(offloaded) == pytest.approx(small_run.losses(plain), rel=1e-5)
    x, y = small_run.final_weights(plain), small_run.final_weights(offloaded)
    for name in x:
        torch.testing.assert_close(y[name], x[name], rtol=0, atol=5e-5)
