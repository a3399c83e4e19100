"""The door, the reference and the chunked implementation, on a CPU."""

import math

import pytest
import torch
from relation_oracle import (
    Case,
    check,
    check_identical,
    dense_rows,
    draw,
    rows_by_loops,
)

from linearard.errors import OperandError
from linearard.ops.relation_kl import attention_kl, chunked, relation_kl

PLAIN_TORCH = ["reference", "chunked"]
CASES = [
    Case(1, 64),
    Case(41, 40, heads=3, batch=2),
    Case(67, 80, padding="left", batch=2),
    Case(130, 128),
    Case(130, 64, padding="holes", batch=2),
    Case(200, 96, causal=False),
    Case(67, 16, padding="right", batch=3, temperature=2.0),
    Case(1, 40, kv_heads=1),
    Case(67, 64, heads=4, kv_heads=2, padding="right", batch=2),
    Case(130, 80, heads=6, kv_heads=2, strided=True),
    Case(130, 40, heads=4, kv_heads=1, causal=False, padding="holes", temperature=0.5),
]


@pytest.mark.parametrize("padding", ["none", "holes"])
@pytest.mark.parametrize("kv_heads", [None, 2])
@pytest.mark.parametrize("causal", [True, False])
def test_oracle_is_the_definition(causal, kv_heads, padding):
    case = Case(9, 8, heads=4, kv_heads=kv_heads, batch=2, causal=causal, padding=padding)
    *operands, valid = draw(case, torch.float64, "cpu")

    def sees(b, i, j):
        return valid[b, i] and valid[b, j] and (j <= i or not causal)

    by_loops = rows_by_loops(*operands, sees, 0.4)
    torch.testing.assert_close(
        dense_rows(*operands, case.seen(valid), 0.4), by_loops, rtol=1e-10, atol=1e-12
    )
    assert by_loops.max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", PLAIN_TORCH)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_twice_the_error_of_plain_pytorch(case, implementation, dtype):
    check(case, implementation, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", PLAIN_TORCH)
@pytest.mark.parametrize("kv_heads", [None, 2])
def test_identical_models_cost_exactly_nothing(kv_heads, implementation, dtype):
    check_identical(Case(67, 40, heads=4, kv_heads=kv_heads, batch=2), implementation, dtype)


def test_chunked_is_repeatable_to_the_bit():
    check(Case(130, 64), "chunked", repeats=1)
    check(Case(130, 64, heads=4, kv_heads=2, batch=2, padding="holes"), "chunked", repeats=1)


@pytest.mark.parametrize("rows, budget", [(7, 1 << 30), (64, 1), (16, 16 * 70 * 2)])
def test_chunked_blocks_of_any_size(monkeypatch, rows, budget):
    monkeypatch.setattr(chunked, "_ROWS", rows)
    monkeypatch.setattr(chunked, "_BLOCK_CPU", budget)
    check(Case(70, 16, heads=6, kv_heads=3, batch=2, padding="holes"), "chunked", torch.float64)
    check(Case(70, 16, heads=3, causal=False), "chunked", torch.float64)


@pytest.mark.parametrize("implementation", PLAIN_TORCH)
@pytest.mark.parametrize("padding", ["none", "holes"])
@pytest.mark.parametrize("kv_heads", [None, 1])
def test_gradcheck(kv_heads, padding, implementation):
    case = Case(7, 3, kv_heads=kv_heads, batch=2, padding=padding)
    q_t, k_t, q_s, k_s, valid = draw(case, torch.float64, "cpu")
    options = {"mask": valid, "reduction": "none", "implementation": implementation}
    if kv_heads is None:
        assert torch.autograd.gradcheck(
            lambda x: relation_kl(q_t, x, **options), (q_s.requires_grad_(),)
        )
    else:
        assert torch.autograd.gradcheck(
            lambda q, k: attention_kl(q_t, k_t, q, k, **options),
            (q_s.requires_grad_(), k_s.requires_grad_()),
        )


@pytest.mark.parametrize("implementation", PLAIN_TORCH)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "options",
    [{"lengths": [7, 4]}, {"scale": 0.7, "lengths": [5, 0]}, {"scale": 0.7, "temperature": 1.5}],
    ids=lambda o: "-".join(o),
)
@pytest.mark.parametrize("wanted", ["self", "q", "k", "both"])
def test_directional_finite_differences(wanted, options, reduction, implementation):
    kv_heads = None if wanted == "self" else 2
    case = Case(7, 3, heads=4, kv_heads=kv_heads, batch=2, strided=wanted == "both")
    q_t, k_t, q_s, k_s, _ = draw(case, torch.float64, "cpu")
    options = {**options, "reduction": reduction, "implementation": implementation}
    run, leaves = {
        "self": (lambda x: relation_kl(q_t, x, **options), [q_s]),
        "q": (lambda q: attention_kl(q_t, k_t, q, k_s, **options), [q_s]),
        "k": (lambda k: attention_kl(q_t, k_t, q_s, k, **options), [k_s]),
        "both": (lambda q, k: attention_kl(q_t, k_t, q, k, **options), [q_s, k_s]),
    }[wanted]
    leaves = [x.requires_grad_() for x in leaves]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("implementation", PLAIN_TORCH)
def test_reductions_and_lengths(implementation):
    teacher, _, student, _, _ = draw(Case(41, 16, heads=3, batch=3), torch.float64, "cpu")
    lengths = torch.tensor([41, 5, 0])
    mask = torch.arange(41) < lengths[:, None]
    options = {"implementation": implementation}
    rows = relation_kl(teacher, student, mask=mask, reduction="none", **options)
    assert rows.shape == (3, 3, 41)
    for given in (lengths, lengths.int(), lengths.tolist()):
        same = relation_kl(teacher, student, lengths=given, reduction="none", **options)
        assert torch.equal(same, rows)
    total = relation_kl(teacher, student, lengths=lengths, reduction="sum", **options)
    mean = relation_kl(teacher, student, lengths=lengths, **options)
    torch.testing.assert_close(total, rows.sum())
    torch.testing.assert_close(mean, rows.sum() / (3 * 46))
    alone = relation_kl(teacher[:1], student[:1], **options)
    torch.testing.assert_close(alone, rows[0].mean())


@pytest.mark.parametrize("implementation", PLAIN_TORCH)
def test_no_valid_token_at_all(implementation):
    teacher = torch.full((2, 2, 5, 4), math.nan)
    student = torch.full((2, 2, 5, 4), math.inf).requires_grad_()
    loss = relation_kl(teacher, student, lengths=[0, 0], implementation=implementation)
    loss.backward()
    assert loss.item() == 0.0
    assert (student.grad == 0).all()


@pytest.mark.parametrize("implementation", PLAIN_TORCH)
def test_upstream_nan_at_invalid_rows_goes_nowhere(implementation):
    teacher, _, student, _, _ = draw(Case(11, 8, batch=2), torch.float32, "cpu")
    student.requires_grad_()
    mask = torch.arange(11) < torch.tensor([[11], [6]])
    rows = relation_kl(teacher, student, mask=mask, reduction="none", implementation=implementation)
    upstream = torch.ones_like(rows).masked_fill(~mask[:, None], math.nan)
    (gradient,) = torch.autograd.grad(rows, student, upstream)
    assert torch.isfinite(gradient).all()
    assert (gradient[0] != 0).any()


def test_temperature_and_scale_are_one_factor():
    teacher, _, student, _, _ = draw(Case(20, 16), torch.float64, "cpu")
    a = relation_kl(teacher, student, temperature=2.0)
    b = relation_kl(teacher, student, scale=0.125)
    torch.testing.assert_close(a, b)
    assert a < relation_kl(teacher, student)


@pytest.mark.parametrize("implementation", PLAIN_TORCH)
def test_nothing_flows_to_the_teacher(implementation):
    teacher, _, student, _, _ = draw(Case(9, 8), torch.float32, "cpu")
    teacher.requires_grad_(), student.requires_grad_()
    relation_kl(teacher, student, implementation=implementation).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("implementation", PLAIN_TORCH)
def test_attention_with_q_for_k_is_the_self_relation(implementation):
    teacher, _, student, _, _ = draw(Case(33, 8), torch.float64, "cpu")
    options = {"implementation": implementation}
    losses, grads = [], []
    for keys in ("same", "copies"):
        x = student.clone().requires_grad_()
        k_t, k_s = (teacher, x) if keys == "same" else (teacher.clone(), x * 1.0)
        losses.append(attention_kl(teacher, k_t, x, k_s, **options))
        grads.append(torch.autograd.grad(losses[-1], x)[0])
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*grads)


def test_autocast_does_not_reach_inside():
    teacher, _, student, _, _ = draw(Case(33, 8), torch.float32, "cpu")
    plain = relation_kl(teacher, student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(relation_kl(teacher, student), plain)


def test_default_on_a_cpu_is_chunked():
    teacher, _, student, _, _ = draw(Case(33, 8), torch.float32, "cpu")
    chosen = relation_kl(teacher, student)
    assert torch.equal(chosen, relation_kl(teacher, student, implementation="chunked"))


def test_inputs_are_left_as_they_were():
    case = Case(33, 8, kv_heads=1, padding="holes")
    *operands, valid = draw(case, torch.float32, "cpu")
    before = [x.clone() for x in operands]
    attention_kl(*operands, mask=valid)
    assert all(torch.equal(a, b) for a, b in zip(operands, before, strict=True))


X = torch.zeros(2, 4, 6, 8)
NESTED = torch.nested.nested_tensor([X[0], X[1]], layout=torch.jagged)
SQUARE = torch.ones(2, 1, 6, 6, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: relation_kl(X[0], X[0]), "batch, heads, tokens, head_dim"),
        (lambda: relation_kl([1.0], X), "got list"),
        (lambda: relation_kl(X[..., :0], X[..., :0]), "a head and a head_dim of at least 1"),
        (lambda: relation_kl(X[0, 0], X[0, 0]), r"Reshape it.*x\[None, None\]"),
        (
            lambda: relation_kl(X.to_sparse(), X.to_sparse()),
            "dense tensor, got sparse_coo.*lengths",
        ),
        (lambda: relation_kl(NESTED, NESTED), "dense tensor, got jagged.*give cu_seqlens"),
        (lambda: relation_kl(X.int(), X.int()), "got int32.*bfloat16 being the nearest"),
        (lambda: relation_kl(X.to(torch.float8_e5m2), X), "got float8_e5m2.*bfloat16"),
        (lambda: attention_kl(X, X[:, :, :3], X, X[:, :, :3]), "keys of the same tokens"),
        (lambda: relation_kl(X, X.double()), "float64"),
        (lambda: relation_kl(X, X.to("meta")), "on meta"),
        (lambda: relation_kl(X, X[:, :2]), "one shape in teacher and student"),
        (lambda: attention_kl(X, X[:, :3], X, X[:, :3]), "H a multiple of Hkv"),
        (lambda: attention_kl(X, X[..., :4], X, X[..., :4]), "same tokens and head_dim"),
        (lambda: relation_kl(X, X, scale=0.0), "scale to be a finite number above 0"),
        (lambda: relation_kl(X, X, temperature=math.inf), "temperature to be a finite"),
        (lambda: relation_kl(X, X, temperature="hot"), "'hot'"),
        (lambda: relation_kl(X, X, reduction="max"), "got 'max'.*reduce the rows"),
        (lambda: relation_kl(X, X, lengths=[6, 6], mask=X[:, 0, :, 0].bool()), "got both"),
        (lambda: relation_kl(X, X, mask=torch.ones(2, 6)), "attention_mask.bool()"),
        (lambda: relation_kl(X, X, mask=torch.ones(6, 2).bool()), r"shape \(2, 6\)"),
        (lambda: relation_kl(X, X, mask=SQUARE), "one value a token; .*causal=True"),
        (lambda: relation_kl(X, X, lengths=[6]), "2 integers"),
        (lambda: relation_kl(X, X, lengths=[1.5, 2.0]), "2 integers"),
        (lambda: relation_kl(X, X, lengths=[7, 2]), "2 integers from 0 to 6, got"),
        (lambda: relation_kl(X, X, implementation="fast"), "got 'fast'.*Leave it out"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(OperandError, match=message):
        call()


@pytest.mark.parametrize(
    ("dtype", "head_dim", "message"),
    [
        (torch.float64, 8, "Cast to float32"),
        (torch.float32, 257, "head_dim up to 256"),
        (torch.float32, 8, "Move them to 'cuda'"),
    ],
)
def test_an_explicit_choice_never_falls_back(dtype, head_dim, message):
    pytest.importorskip("triton")
    x = torch.zeros(1, 1, 4, head_dim, dtype=dtype)
    with pytest.raises(OperandError, match=message):
        relation_kl(x, x, implementation="triton")


def test_triton_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("linearard.ops.relation_kl.dispatch._has_triton", lambda: False)
    with pytest.raises(OperandError, match="Install triton"):
        relation_kl(X, X, implementation="triton")
    assert relation_kl(X, X).item() == 0.0
