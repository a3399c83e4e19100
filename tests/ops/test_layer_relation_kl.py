"""The relations of a layer in one call, in plain torch on a CPU, and what it refuses."""

import random

import pytest
import torch
from layer_cases import HEADS, check_layer
from random_cases import compile_classes, draw_case
from relation_oracle import Case, draw

from linearard.errors import OperandError
from linearard.ops.relation_kl import attention_kl, layer_relation_kl, relation_kl

PLAIN_TORCH = ["reference", "chunked"]


@pytest.mark.parametrize("implementation", PLAIN_TORCH)
@pytest.mark.parametrize("heads", HEADS, ids=lambda h: "-".join(h))
def test_random_layers_are_what_each_relation_is_alone(heads, implementation):
    rng = random.Random(3)
    for kind in compile_classes()[::3]:
        case = draw_case(kind, rng, largest=60)
        check_layer(case, heads, implementation, getattr(torch, kind.dtype))


@pytest.mark.parametrize("implementation", PLAIN_TORCH)
def test_frozen_students_and_unused_relations(implementation):
    case = Case(33, 16, batch=2, padding="holes")
    for frozen, unused in (("k", ""), ("q", ""), ("", "v"), ("q", "k"), ("qk", "")):
        check_layer(case, HEADS[0], implementation, frozen=tuple(frozen), unused=tuple(unused))


def layer(**changes):
    """Queries, keys and values of one layer, and attention over the same tensors."""
    q_t, k_t, q_s, k_s, _ = draw(Case(9, 8, heads=4, kv_heads=2), torch.float64, "cpu")
    relations = {"q": (q_t, q_s), "k": (k_t, k_s), "qk": (q_t, k_t, q_s, k_s)}
    return {**relations, **changes}


def test_scales_by_name_and_their_defaults():
    relations = layer()
    loss = layer_relation_kl(relations, scale={"qk": 0.3}, temperature=2.0)
    assert torch.equal(loss["q"], relation_kl(*relations["q"], temperature=2.0))
    alone = attention_kl(*relations["qk"], scale=0.3, temperature=2.0)
    assert torch.equal(loss["qk"], alone)
    one = layer_relation_kl(relations, scale=0.7)
    assert torch.equal(one["k"], relation_kl(*relations["k"], scale=0.7))
    assert loss["q"].shape == ()


def test_a_tensor_in_two_relations_gets_the_gradient_of_both():
    mask = torch.ones(1, 9, dtype=torch.bool)
    mask[0, 7:] = False
    relations = layer()
    student = relations["q"][1].requires_grad_()
    loss = layer_relation_kl(relations, mask=mask)
    (both,) = torch.autograd.grad(loss["q"] + 2 * loss["qk"], student)
    own = torch.autograd.grad(relation_kl(*relations["q"], mask=mask), student)[0]
    attention = torch.autograd.grad(attention_kl(*relations["qk"], mask=mask), student)[0]
    torch.testing.assert_close(both, own + 2 * attention)


@pytest.mark.parametrize("implementation", PLAIN_TORCH)
def test_directional_finite_differences(implementation):
    relations = layer()
    (q_t, q_s), (k_t, k_s) = relations["q"], relations["k"]
    options = {"scale": {"qk": 0.5}, "window": 5, "implementation": implementation}

    def together(q, k):
        pairs = {"q": (q_t, q), "k": (k_t, k), "qk": (q_t, k_t, q, k)}
        return tuple(layer_relation_kl(pairs, **options).values())

    leaves = (q_s.requires_grad_(), k_s.requires_grad_())
    assert torch.autograd.gradcheck(together, leaves, fast_mode=True)


@pytest.mark.parametrize("implementation", PLAIN_TORCH)
def test_no_tokens_give_nothing(implementation):
    x = torch.zeros(1, 2, 0, 8).requires_grad_()
    loss = layer_relation_kl({"q": (x.detach(), x), "v": (x.detach(), x)}, mask=None)
    sum(loss.values()).backward()
    assert {name: value.item() for name, value in loss.items()} == {"q": 0.0, "v": 0.0}
    assert x.grad.shape == x.shape


X = torch.zeros(1, 2, 6, 8)


@pytest.mark.parametrize(
    ("relations", "options", "message"),
    [
        ({}, {}, "at least one, such as 'q'"),
        ([(X, X)], {}, "got list"),
        ({"q": X}, {}, "got Tensor for 'q'.*two tensors of a self-relation, or four"),
        ({"q": (X, X, X)}, {}, "got tuple of 3 for 'q'"),
        ({"q": (X, X), "v": (X, X[0])}, {}, "q_s of 'v' to be a tensor"),
        ({"k": (X, X[:, :1])}, {}, "queries of 'k' of one shape"),
        ({"qk": (X, X[..., :4], X, X[..., :4])}, {}, "of 'qk'.*keys before they are repeated"),
        (
            {"q": (X, X), "k": (X[:, :, :3],) * 2},
            {},
            "'k' with the batch, tokens and device of 'q'",
        ),
        ({"q": (X, X)}, {"scale": {"qk": 1.0}}, "scales by the names of relations: 'q', got 'qk'"),
        ({"q": (X, X)}, {"scale": {"q": -1.0}}, "scale to be a finite number above 0"),
        ({"q": (X, X), "k": (X[:, :1],) * 2}, {"row_weights": X[..., 0]}, r"to \(1, 1, 6\)"),
        ({"q": (X, X)}, {"reduction": "max"}, "got 'max'"),
    ],
)
def test_what_does_not_fit_is_refused(relations, options, message):
    with pytest.raises(OperandError, match=message):
        layer_relation_kl(relations, **options)
