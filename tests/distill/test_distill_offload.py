"""Teacher relations in host memory."""

import dense
import pytest
import torch

import tiny
from linearard.distill import ObjectiveConfig, RestorationModule

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
        loss = module(ids)["loss"]
        found.append((loss.detach(), dense.gradients(restorable, loss)))
    assert torch.equal(found[0][0], found[1][0])
    dense.assert_same_gradients(found[1][1], found[0][1], rtol=1e-6)
