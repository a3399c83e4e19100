"""Derivatives of gradients: right from the reference, refused by what keeps linear memory, never dropped."""

import pytest
import torch

import tiny
from linearard.distill import ObjectiveConfig, RestorationModule
from linearard.errors import OperandError
from linearard.ops.relation_kl import relation_kl


def operands():
    make = torch.Generator().manual_seed(0)
    teacher, student = (
        torch.randn(1, 2, 7, 4, generator=make, dtype=torch.float64) for _ in range(2)
    )
    return teacher, student.requires_grad_()


def penalty(implementation, teacher, student):
    """A sum that would also have a gradient if that of the loss were a constant."""
    loss = relation_kl(teacher, student, implementation=implementation)
    (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
    return loss + gradient.square().sum()


def test_the_reference_has_second_derivatives():
    teacher, student = operands()
    assert torch.autograd.gradcheck(lambda x: penalty("reference", teacher, x), (student,))


def test_linear_memory_says_that_it_has_none():
    teacher, student = operands()
    total = penalty("chunked", teacher, student)
    with pytest.raises(OperandError, match="implementation to reference"):
        total.backward()


def test_first_derivatives_may_be_asked_for_twice():
    teacher, student = operands()
    loss = relation_kl(teacher, student, implementation="chunked")
    first = torch.autograd.grad(loss, student, create_graph=True)[0]
    again = torch.autograd.grad(loss, student)[0]
    expected = relation_kl(teacher, student, implementation="reference")
    right = torch.autograd.grad(expected, student)[0]
    torch.testing.assert_close(first, right, rtol=1e-9, atol=1e-12)
    assert torch.equal(first.detach(), again)


OBJECTIVES = {
    "relations": {"relations": {"qk": 1.0}, "implementation": "chunked"},
    "teacher's inputs": {"relations": {"qk": 1.0}, "inputs": "teacher"},
    "logit KL": {"relations": {}, "logit_weight": 1.0},
    "next token": {"relations": {}, "lm_weight": 1.0},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_term_of_an_objective_drops_them(name):
    # PyTorch's fast attention refuses by itself
    restorable = tiny.tiny_restorable(changes={"attn_implementation": "eager"})
    tiny.perturb_adapter(restorable)
    module = RestorationModule(restorable, ObjectiveConfig(**OBJECTIVES[name]))
    loss = module(tiny.tokens())["loss"]
    found = torch.autograd.grad(
        loss, restorable.adapter.parameters(), create_graph=True, allow_unused=True
    )
    norm = sum(gradient.square().sum() for gradient in found if gradient is not None)
    with pytest.raises(OperandError, match="first derivatives of"):
        (loss.detach() + norm).backward()
