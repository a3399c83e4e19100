"""What the GPU tests do, as functions that a process of its own can run.

Most of the time goes into compiling kernels, so test_relation_kl_gpu.py spreads these over processes.
"""

from __future__ import annotations

import contextlib
import importlib
import random
from unittest import mock

import torch
from layer_cases import HEADS, check_layer
from random_cases import compile_classes, draw_case, draw_documents
from relation_oracle import Case, check, check_identical, draw

from linearard.errors import OperandError
from linearard.ops.relation_kl import attention_kl, relation_kl

CALLS = 1000
HOPPER_CALLS, HOPPER_JOBS = 480, 8
ON_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
FUSED = ("triton", "hopper") if ON_HOPPER else ("triton",)
CLASSES = compile_classes(40)
KERNELS = "linearard.ops.relation_kl.triton"


def random_calls(index: int, pointers: bool = False) -> int:
    """Calls of a class, each repeated 20 times; a few, with ``pointers`` alone. How many calls."""
    kind, rng = CLASSES[index], random.Random(index)
    calls = 4 if pointers else CALLS // len(CLASSES)
    modules = [importlib.import_module(f"{KERNELS}.{name}") for name in ("forward", "backward")]
    with contextlib.ExitStack() as stack:
        for module in modules * pointers:
            stack.enter_context(mock.patch.object(module, "tma_fits", lambda *operands: False))
        for _ in range(calls):
            case = draw_case(kind, rng)
            try:
                check(case, "triton", getattr(torch, kind.dtype), "cuda", repeats=20)
            except AssertionError as problem:
                raise AssertionError(f"{kind}: {case!r}: {problem}") from problem
    return calls


def hopper_calls(index: int) -> int:
    """Calls that the Hopper kernels take, each repeated 20 times and once with adds in any order."""
    rng = random.Random(1000 + index)
    for i in range(HOPPER_CALLS // HOPPER_JOBS):
        tokens = rng.choice([1, 2, 127, 128, 129, 255, 257, rng.randint(1, 1500)])
        heads = rng.choice([1, 2, 3, 6, 9])
        window = documents = None
        if rng.random() < 0.4:
            window = rng.choice([1, 2, 63, 64, 65, 128, 129, rng.randint(1, tokens)])
        if rng.random() < 0.3:
            documents = draw_documents(tokens, rng)
        case = Case(
            tokens,
            (64, 128)[i % 2],
            heads=heads,
            kv_heads=rng.choice([None] + [n for n in range(1, heads + 1) if heads % n == 0]),
            batch=1 if documents is not None else rng.choice([1, 2, 3]),
            window=window,
            documents=documents,
            weights=rng.choice([None, None, (True, True, True), (True, False, True), (False,) * 3]),
            temperature=rng.choice([1.0, 1.0, 0.5, 3.0]),
            amplitude=rng.choice([1.0, 1.0, 0.05, 4.0, 40.0]),
            strided=rng.random() < 0.4,
            seed=rng.randrange(1 << 30),
        )
        try:
            check(case, "hopper", torch.bfloat16, "cuda", repeats=20)
            check(case, "hopper", torch.bfloat16, "cuda", deterministic=False)
        except AssertionError as problem:
            raise AssertionError(f"{case!r}: {problem}") from problem
    return i + 1


def larger_calls():
    """Lengths of many tiles, the benchmark's head_dims."""
    for kernels in FUSED:
        check(Case(1271, 128, heads=3), kernels, torch.bfloat16, "cuda", 5)
        check(Case(2048, 64, heads=3, window=500), kernels, torch.bfloat16, "cuda", 5)
        documents = (700, 0, 1, 300, 1047)
        check(Case(2048, 64, heads=3, documents=documents), kernels, torch.bfloat16, "cuda", 5)
        check(Case(1271, 128, heads=6, kv_heads=2), kernels, torch.bfloat16, "cuda", 5)


def identical_models():
    """Exactly nothing, whatever limits the rows."""
    for kv_heads in (None, 2):
        for limits in (
            {},
            {"window": 30},
            {"documents": (100, 101), "amplitude": 40.0},
            {"window": 17, "amplitude": 0.01},
        ):
            case = Case(201, 64, heads=4, kv_heads=kv_heads, **limits)
            check_identical(case, "triton", torch.bfloat16, "cuda")
    for kernels in FUSED:
        for head_dim, amplitude in ((64, 40.0), (128, 0.01)):
            for window, kv_heads in ((None, None), (None, 1), (1, 2), (100, None)):
                case = Case(333, head_dim, kv_heads=kv_heads, amplitude=amplitude, window=window)
                check_identical(case, kernels, torch.bfloat16, "cuda")


def layers_are_what_each_relation_is_alone():
    """Launches that relations share, to the bit."""
    for kernels in FUSED:
        case = Case(333, 128, batch=2, strided=True)
        check_layer(case, HEADS[0], kernels, torch.bfloat16, "cuda")
        check_layer(case, HEADS[0], kernels, torch.bfloat16, "cuda", frozen=("k",), unused=("v",))
        check_layer(Case(512, 128, window=100), HEADS[2], kernels, torch.bfloat16, "cuda")
    case = Case(321, 64, batch=2, padding="holes")
    check_layer(case, HEADS[0], "triton", torch.bfloat16, "cuda")
    check_layer(case, HEADS[0], "triton", torch.bfloat16, "cuda", frozen=("k",), unused=("v",))


def layers_of_other_kinds():
    case = Case(200, 64, documents=(70, 0, 130), causal=False, strided=True)
    check_layer(case, HEADS[1], "triton", torch.float16, "cuda")
    check_layer(Case(130, 40, amplitude=40.0), HEADS[0], "triton", torch.float32, "cuda")
    case = Case(256, 128, weights=(True, False, True))
    check_layer(case, HEADS[0], "triton", torch.bfloat16, "cuda")


def long_runs_agree_to_the_bit():
    q_t, _, q_s, _, _ = draw(Case(4096, 128, heads=8), torch.bfloat16, "cuda")
    grads = []
    for _ in range(20):
        x = q_s.clone().requires_grad_()
        loss = relation_kl(q_t, x)
        grads.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
    for other in grads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads[0], other, strict=True))


def more_heads_than_a_grid_dimension_holds():
    teacher = torch.randn(2, 40000, 3, 16, device="cuda", dtype=torch.bfloat16)
    student = torch.randn_like(teacher).requires_grad_()
    rows = relation_kl(teacher, student, reduction="none")
    last = relation_kl(teacher[1:, -1:], student[1:, -1:], reduction="none")
    assert torch.equal(rows[1, -1], last[0, 0])
    rows.sum().backward()
    assert torch.isfinite(student.grad).all() and (student.grad[1, -1, 1:] != 0).any()


def more_elements_than_32_bits_count():
    """2.2e9 elements: the last heads must be what they are alone, values and gradients."""
    shape = (2, 4200, 2048, 128)
    teacher = torch.empty(shape, device="cuda", dtype=torch.bfloat16).normal_()
    student = torch.empty_like(teacher).normal_().requires_grad_()
    assert teacher.numel() > 2**31
    options = [{"window": 64, "implementation": "triton"}]
    if ON_HOPPER:
        options += [{"implementation": "hopper"}, {"window": 64, "implementation": "hopper"}]
    for some in options:
        _last_heads_are_what_they_are_alone((teacher,), (student,), relation_kl, some)
    if ON_HOPPER:
        keys = [x[:, : shape[1] // 4].flip(2) for x in (teacher, student.detach())]
        teachers, students = (teacher, keys[0]), (student, keys[1].requires_grad_())
        _last_heads_are_what_they_are_alone(teachers, students, attention_kl, options[-1])


def _last_heads_are_what_they_are_alone(teachers, students, loss, options):
    """Of the last sequence the last group of heads, with its keys if there are any."""
    options = {**options, "reduction": "none"}
    rows = loss(*teachers, *students, **options)
    gradients = torch.autograd.grad(rows.sum(), students)
    group = [3] if len(students) == 1 else [students[0].shape[1] // students[1].shape[1], 1]
    last = [(slice(1, None), slice(-heads, None)) for heads in group]
    few_teachers = [x[at].clone() for x, at in zip(teachers, last, strict=True)]
    few_students = [
        x.detach()[at].clone().requires_grad_() for x, at in zip(students, last, strict=True)
    ]
    few = loss(*few_teachers, *few_students, **options)
    few_gradients = torch.autograd.grad(few.sum(), few_students)
    assert torch.equal(rows[last[0]], few)
    for gradient, few_gradient, at in zip(gradients, few_gradients, last, strict=True):
        assert torch.equal(gradient[at], few_gradient)
        assert (few_gradient != 0).any()


def nothing_is_copied_to_the_host():
    """Boundaries, lengths and masks that lie on the GPU are read there: no call waits for it."""
    q_t, k_t, q_s, k_s, valid = draw(
        Case(257, 64, heads=4, kv_heads=2, padding="holes"), torch.bfloat16, "cuda"
    )
    weights = torch.rand(1, 1, 257, device="cuda")
    edges = torch.tensor([0, 100, 100, 257], device="cuda", dtype=torch.int32)

    def run():
        leaves = [x.detach().requires_grad_() for x in (q_s, k_s)]
        attention_kl(
            q_t, k_t, *leaves, cu_seqlens=edges, mask=valid, window=64, row_weights=weights
        ).backward()

        for name in FUSED:
            relation_kl(q_t, leaves[0], cu_seqlens=edges, implementation=name).backward()

    run()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def default_choice():
    case = Case(67, 64)
    for dtype, same_as in ((torch.bfloat16, FUSED[-1]), (torch.float64, "chunked")):
        q_t, k_t, q_s, k_s, _ = draw(case, dtype, "cuda")
        chosen = attention_kl(q_t, k_t, q_s, k_s)
        assert torch.equal(chosen, attention_kl(q_t, k_t, q_s, k_s, implementation=same_as))


def chunked_on_a_gpu():
    check(Case(401, 80, heads=4, kv_heads=2, padding="right", batch=2), "chunked", device="cuda")
    check(Case(401, 64, padding="holes"), "chunked", torch.bfloat16, "cuda")
    check(Case(401, 64, documents=(200, 0, 201), window=77), "chunked", device="cuda")


def hopper_refuses_what_it_does_not_take():
    x = torch.randn(1, 2, 40, 64, device="cuda", dtype=torch.bfloat16)
    for got, operand, options in (
        ("float16", x.half(), {}),
        ("head_dim 32", x[..., :32], {}),
        ("after them", x, {"causal": False}),
        ("invalid tokens", x, {"lengths": [30]}),
    ):
        try:
            relation_kl(operand, operand, implementation="hopper", **options)
        except OperandError as error:
            assert got in str(error), error
        else:
            raise AssertionError(f"{got} was taken")


SINGLE_JOBS = (
    larger_calls,
    identical_models,
    layers_are_what_each_relation_is_alone,
    layers_of_other_kinds,
    long_runs_agree_to_the_bit,
    more_heads_than_a_grid_dimension_holds,
    more_elements_than_32_bits_count,
    nothing_is_copied_to_the_host,
    default_choice,
    chunked_on_a_gpu,
) + (hopper_refuses_what_it_does_not_take,) * ON_HOPPER
