"""Teacher relations in host memory."""

import dense
import pytest
import torch

import tiny
from linearard.distill import ObjectiveConfig, RestorationModule
from linearard.distill.teacher_offload import OffloadedTeacher

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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("recompute", [False, True])
def test_teacher_relations_in_host_memory(device, recompute):
    restorable = tiny.tiny_restorable()
    tiny.perturb_adapter(restorable)
    restorable.model.to(device)
    ids = tiny.tokens(2, 41).to(device)
    found = []
    for offload in (False, True):
        objective = ObjectiveConfig(relations={"q": 1.0, "v": 0.5, "qk": 0.25})
        module = RestorationModule(restorable, objective, offload_teacher=offload).train()
        if recompute:
            module.gradient_checkpointing_enable()
        with restorable.tap.step():
            loss = module(ids)["loss"]
            found.append((loss.detach(), dense.gradients(restorable, loss)))
    assert torch.equal(found[0][0], found[1][0])
    dense.assert_same_gradients(found[1][1], found[0][1], rtol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", [[0, 2, 5, 9], [0, 2, 5, 9, 5, 2, 0], [9, 2, 2, 5]])
def test_layers_come_back_as_they_went(device, order):
    """In whatever order, also where the next one is on its way already, with much to wait for."""
    layers, make = OffloadedTeacher(), torch.Generator().manual_seed(0)
    expected, busy = {}, torch.randn(1024, 1024, device=device)
    for layer in (0, 2, 5, 9):
        expected[layer] = torch.randn(3, 300, 7, generator=make)
        for _ in range(3):
            busy = (busy @ busy).softmax(-1)
        late = expected[layer].to(device) + busy[0, 0] * 0
        layers.put(layer, {"query": late.transpose(0, 1), "value": late[:1] * 2})
        del late
        torch.full((3, 300, 7), float("nan"), device=device)  # takes the memory that became free
    for layer in order:
        found = layers.get(layer)
        assert found["query"].device.type == device
        torch.testing.assert_close(found["query"].cpu(), expected[layer].transpose(0, 1))
        torch.testing.assert_close(found["value"].cpu(), expected[layer][:1] * 2)
        busy = (busy @ busy).softmax(-1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_memory_comes_back_while_the_host_runs_ahead():
    """Forty layers of 32 MiB in the memory of a few, though all are asked for before anything is computed."""
    a_layer = 2**23
    layers, busy = OffloadedTeacher(), torch.randn(8192, 8192, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()

    def keep_busy(x):
        for _ in range(30):
            x = (x @ x).clamp_(-1, 1)
        return x

    busy = keep_busy(busy)
    for layer in range(40):
        layers.put(layer, {"query": torch.full((a_layer,), float(layer), device="cuda")})
    totals = []
    busy = keep_busy(busy)
    for layer in [*range(40), *reversed(range(40))]:
        totals.append(layers.get(layer)["query"].mean())
    held = torch.cuda.memory_reserved() - before
    assert held < 3 * busy.nbytes + 6 * 4 * a_layer
    assert torch.stack(totals).tolist() == [*range(40), *reversed(range(40))]
