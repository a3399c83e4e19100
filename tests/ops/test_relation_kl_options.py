"""Window, packed documents, row weights and their edges, in plain torch on a CPU."""

import math
import random
from itertools import pairwise

import pytest
import torch
from random_cases import compile_classes, draw_case
from relation_oracle import (
    Case,
    check,
    check_identical,
    dense_rows,
    draw,
    draw_weights,
    rows_by_loops,
)

from linearard.errors import OperandError
from linearard.ops.relation_kl import attention_kl, chunked, relation_kl
from linearard.ops.relation_kl.visibility import Visibility

PLAIN_TORCH = ["reference", "chunked"]
OPTIONS = [
    Case(7, 3, batch=2, window=3),
    Case(7, 3, window=2, causal=False),
    Case(7, 3, documents=(3, 0, 1, 3)),
    Case(7, 3, documents=(4, 3), window=2, causal=False, padding="holes"),
    Case(7, 3, batch=2, padding="holes", weights=(True, True, True)),
    Case(7, 3, weights=(False, False, True), window=3, temperature=2.0),
]
CASES = [
    Case(130, 16, batch=2, window=1),
    Case(130, 64, window=37, padding="left", batch=2),
    Case(131, 40, heads=4, kv_heads=2, window=64),
    Case(200, 24, causal=False, window=20, weights=(True, False, True), batch=2),
    Case(150, 16, documents=(0, 64, 1, 0, 0, 70, 15, 0)),
    Case(150, 16, heads=6, kv_heads=2, documents=(33, 117), window=65, padding="holes"),
    Case(90, 8, heads=4, kv_heads=1, documents=(30, 60), causal=False, window=31, strided=True),
    Case(67, 64, amplitude=40.0),
    Case(67, 64, heads=2, kv_heads=1, amplitude=40.0, window=9, causal=False),
    Case(40, 16, batch=2, padding="all", weights=(True, True, True)),
    Case(1, 16, window=1, documents=(0, 1)),
]


def either(case, operands, student, **options):
    """Rows of a self-relation or of attention, whichever the case is."""
    if case.kv_heads is None:
        return relation_kl(operands[0], student[0], **options)
    return attention_kl(*operands[:2], *student, **options)


@pytest.mark.parametrize("kv_heads", [None, 2])
@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_oracle_is_the_definition(case, kv_heads):
    case = Case(**{**vars(case), "kv_heads": kv_heads, "heads": 4})
    *operands, valid = draw(case, torch.float64, "cpu")
    ends = case.cu_seqlens or [0, case.tokens]
    document = [next(d for d, end in enumerate(ends[1:]) if i < end) for i in range(case.tokens)]

    def sees(b, i, j):
        near = case.window is None or i - case.window < j < i + case.window
        return (
            (valid[b, i] and valid[b, j])
            and (j <= i or not case.causal)
            and near
            and document[i] == document[j]
        )

    by_loops = rows_by_loops(*operands, sees, 0.4)
    dense = dense_rows(*operands, case.seen(valid), 0.4)
    torch.testing.assert_close(dense, by_loops, rtol=1e-10, atol=1e-12)
    assert by_loops.max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", PLAIN_TORCH)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_twice_the_error_of_plain_pytorch(case, implementation, dtype):
    check(case, implementation, dtype)


@pytest.mark.parametrize("implementation", PLAIN_TORCH)
def test_random_calls(implementation):
    rng = random.Random(1)
    for kind in compile_classes():
        check(draw_case(kind, rng, largest=100), implementation, getattr(torch, kind.dtype))


@pytest.mark.parametrize("implementation", PLAIN_TORCH)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kv_heads", [None, 1])
@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_directional_finite_differences(case, kv_heads, reduction, implementation):
    case = Case(**{**vars(case), "kv_heads": kv_heads})
    *operands, valid = draw(case, torch.float64, "cpu")
    options = {
        **case.options(valid),
        "row_weights": None if case.weights is None else draw_weights(case, "cpu"),
        "reduction": reduction,
        "implementation": implementation,
    }
    leaves = [x.requires_grad_() for x in operands[2 : 3 if kv_heads is None else 4]]
    assert torch.autograd.gradcheck(
        lambda *student: either(case, operands, student, **options), leaves, fast_mode=True
    )


@pytest.mark.parametrize("implementation", PLAIN_TORCH)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_identical_models_cost_exactly_nothing(case, implementation):
    check_identical(case, implementation)


@pytest.mark.parametrize("implementation", PLAIN_TORCH)
@pytest.mark.parametrize("causal", [True, False])
def test_packed_documents_are_a_batch_of_their_own(causal, implementation):
    lengths = (5, 0, 17, 1, 9)
    case = Case(32, 8, heads=4, kv_heads=2, documents=lengths, causal=causal, window=6)
    *operands, _ = draw(case, torch.float64, "cpu")
    options = {"causal": causal, "window": 6, "implementation": implementation}
    packed = attention_kl(*operands, cu_seqlens=case.cu_seqlens, reduction="none", **options)
    for start, end in pairwise(case.cu_seqlens):
        own = [x[:, :, start:end] for x in operands]
        rows = attention_kl(*own, reduction="none", **options)
        torch.testing.assert_close(packed[:, :, start:end], rows)


@pytest.mark.parametrize("implementation", PLAIN_TORCH)
@pytest.mark.parametrize("own", [(True,) * 3, (True, False, True), (False, True, False)])
def test_weights_in_every_reduction(own, implementation):
    case = Case(21, 8, heads=3, batch=2, padding="right", weights=own)
    teacher, _, student, _, valid = draw(case, torch.float64, "cpu")
    weights = draw_weights(case, "cpu").double()
    full = weights.expand(2, 3, 21) * valid[:, None]
    options = {"mask": valid, "implementation": implementation}
    rows = relation_kl(teacher, student, reduction="none", **options)
    given = {**options, "row_weights": weights}
    weighted = relation_kl(teacher, student, reduction="none", **given)
    torch.testing.assert_close(weighted, rows * full)
    total = relation_kl(teacher, student, reduction="sum", **given)
    torch.testing.assert_close(total, (rows * full).sum())
    mean = relation_kl(teacher, student, **given)
    torch.testing.assert_close(mean, (rows * full).sum() / full.sum())
    ones = relation_kl(teacher, student, row_weights=torch.ones(1, 1, 1), **options)
    torch.testing.assert_close(ones, relation_kl(teacher, student, **options))
    nothing = relation_kl(teacher, student, row_weights=torch.zeros(1, 1, 21), **options)
    assert nothing.item() == 0.0


def test_weights_get_no_gradient():
    teacher, _, student, _, _ = draw(Case(9, 8), torch.float32, "cpu")
    weights = torch.ones(1, 1, 9, requires_grad=True)
    relation_kl(teacher, student.requires_grad_(), row_weights=weights).backward()
    assert weights.grad is None and (student.grad != 0).any()


@pytest.mark.parametrize("implementation", PLAIN_TORCH)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(2, 4, 0, 8), (0, 4, 5, 8)], ids=str)
def test_empty_operands(shape, reduction, implementation):
    batch, _, tokens, _ = shape
    options = {"reduction": reduction, "implementation": implementation}
    for extra in ({}, {"window": 3}, {"mask": torch.ones(batch, tokens, dtype=torch.bool)}):
        q, k = (torch.zeros(shape)[:, :n].requires_grad_() for n in (4, 2))
        own = relation_kl(torch.zeros(shape), q, **options, **extra)
        both = attention_kl(q.detach(), k.detach(), q, k, **options, **extra)
        for loss in (own, both):
            assert loss.shape == (shape[:3] if reduction == "none" else ())
            assert loss.dtype == torch.float32 and loss.sum().item() == 0.0
        (own.sum() + both.sum()).backward()
        assert q.grad.shape == q.shape and k.grad.shape == k.shape
    if batch:
        x = torch.zeros(1, 2, 0, 8)
        assert relation_kl(x, x, cu_seqlens=[0, 0], implementation=implementation).item() == 0.0


@pytest.mark.parametrize("causal", [True, False])
def test_work_of_the_chunks_grows_with_the_window_alone(causal):
    def scores(tokens, **limits):
        model = chunked._Model(torch.zeros(1, 2, tokens, 4), None)
        blocks = model.blocks(Visibility(causal, **limits))
        return sum((b.i1 - b.i0) * (b.j1 - b.j0) * (b.h1 - b.h0) for b in blocks)

    sides = 1 if causal else 2
    for tokens in (1024, 4096):
        assert scores(tokens, window=100) <= 2 * tokens * (chunked._ROWS + sides * 100)
        documents = torch.arange(0, tokens + 1, 128, dtype=torch.int32)
        assert scores(tokens, cu_seqlens=documents) <= 2 * tokens * 128
    assert scores(1024) > 2 * 1024 * 500


def test_window_and_documents_as_other_libraries_give_them():
    teacher, _, student, _, _ = draw(Case(9, 8), torch.float32, "cpu")
    packed = relation_kl(teacher, student, cu_seqlens=[0, 4, 9])
    for kind in (torch.int32, torch.int64):
        given = torch.tensor([0, 4, 9], dtype=kind)
        assert torch.equal(relation_kl(teacher, student, cu_seqlens=given), packed)
    wide = relation_kl(teacher, student, window=4096)
    assert torch.equal(wide, relation_kl(teacher, student))


@pytest.mark.parametrize("edges", [[0, 4], [3, 9], [5, 2, 9], [-4, 40, 9], [9, 9], [0, 0]])
def test_spans_stay_inside_whatever_a_device_holds(edges):
    """Boundaries on a device are not checked: they may give nonsense, but no address outside."""
    visible = Visibility(True, window=3, cu_seqlens=torch.tensor(edges, dtype=torch.int32))
    first, end = visible.spans(9, torch.device("cpu"))
    at = torch.arange(9)
    assert ((first >= 0) & (first <= at) & (at < end) & (end <= 9)).all()


X = torch.zeros(2, 4, 6, 8)
ONE = X[:1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: relation_kl(X, X, window=0), "1 is the narrowest window"),
        (lambda: relation_kl(X, X, window=2.5), "got 2.5"),
        (lambda: relation_kl(X, X, window=True), "got True"),
        (lambda: relation_kl(X, X, cu_seqlens=[0, 6]), "a batch of 1 with cu_seqlens, got a batch"),
        (lambda: relation_kl(ONE, ONE, cu_seqlens=[0, 5]), r"from 0 to 6, got \[0, 5\]"),
        (lambda: relation_kl(ONE, ONE, cu_seqlens=[1, 6]), r"got \[1, 6\]"),
        (lambda: relation_kl(ONE, ONE, cu_seqlens=[0, 4, 2, 6]), r"got \[0, 4, 2, 6\]"),
        (lambda: relation_kl(ONE, ONE, cu_seqlens=[0.0, 6.0]), "got torch.float32"),
        (lambda: relation_kl(ONE, ONE, cu_seqlens=[[0, 6]]), r"got shape \(1, 2\)"),
        (lambda: relation_kl(ONE, ONE, cu_seqlens=["0"]), "varlen attention"),
        (lambda: relation_kl(X, X, row_weights=[1.0]), "got list"),
        (lambda: relation_kl(X, X, row_weights=X[..., 0].bool()), r"Pass weights.float\(\)"),
        (lambda: relation_kl(X, X, row_weights=X[..., 0, 0]), r"got shape \(2, 4\)"),
        (lambda: relation_kl(X, X, row_weights=X[:, :3, :, 0]), r"broadcasts to \(2, 4, 6\)"),
        (lambda: relation_kl(X, X, row_weights=X[..., 0] - 1), "0 or more, all finite, got -1.0"),
        (lambda: relation_kl(X, X, row_weights=X[..., 0] / 0), "got nan"),
        (lambda: relation_kl(X, X, row_weights=X[..., 0] + math.inf), "got inf"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(OperandError, match=message):
        call()
