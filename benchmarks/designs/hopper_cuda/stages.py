"""What the benchmark does on a GPU, one stage a process; each says what it begins before it does."""

from __future__ import annotations

import itertools
import math
import random
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from benchmarks import relation_kl as product
from benchmarks.designs.hopper_cuda import launcher, probes, relation
from benchmarks.designs.hopper_cuda.launcher import TensorMap, launch

PROBE_SHARED = 6 * 16384 + 1280
SMALL = [(1, 1, 2, 64), (1, 1, 128, 128), (1, 1, 129, 128), (2, 3, 401, 64), (1, 2, 1000, 128)]


def say(*what):
    print(f"  [{time.perf_counter():8.1f}]", *what, flush=True)


def build():
    for name in ("probes.cu", "forward.cu", "backward.cu"):
        say("compile", name)
        launcher.compiled(name)
    jobs = [(f, v) for v in set(VARIANTS.values()) if v for f in ("forward.cu", "backward.cu")]
    with ThreadPoolExecutor(8) as pool:  # the compiler holds no lock of Python's
        list(pool.map(lambda job: launcher.compiled(*job), jobs))
    say("compiled the variants")
    return {"device": torch.cuda.get_device_name()}


def _probe(name):
    maps = {"copy": 1, "products": 2, "adds": 0}[name]

    def run(kernel, grid, arguments):
        arguments = [TensorMap(x) if i < maps else x for i, x in enumerate(arguments)]
        launch("probes.cu", f"probe_{kernel}", grid, 128, PROBE_SHARED, arguments)
        torch.cuda.synchronize()

    say(name)
    if name == "products":  # each step adds one kind of product
        for steps in (1, 2):
            probes.check_products(run, "cuda", steps)
            say(f"kind {steps} agrees")
    getattr(probes, f"check_{name}")(run, "cuda")
    return {}


def draw(shape, seed, kind="near", amplitude=1.0):
    generator = torch.Generator("cuda").manual_seed(seed)
    b, h, n, d = shape

    def normal():  # as projections leave it, inside a larger buffer
        if kind != "strided":
            return torch.randn(shape, device="cuda", generator=generator)
        wide = torch.randn(b, n, h, 2 * d, device="cuda", generator=generator)
        return wide[..., :d].transpose(1, 2)

    teacher, noise = normal() * amplitude, normal() * amplitude
    student = teacher + 0.3 * noise
    if kind == "rising":  # what comes later in a row's sweep, the first tokens, scores most
        size = torch.linspace(6, 0.5, n, device="cuda")[:, None]
        teacher, student = teacher.abs() * size, student.abs() * size
    if kind == "leap":  # beyond what float32 holds over the offset of the diagonal's tile
        teacher[:, :, 3::101] *= 60
        student[:, :, 3::101] *= 60
    if kind == "equal":
        student = teacher.clone()
    upstream = torch.randn(shape[:3], device="cuda", generator=generator)
    return teacher.bfloat16(), student.bfloat16(), upstream


def dense(teacher, student, upstream, dtype):
    """Rows, logsumexps and the gradient, by the formula in ``dtype``, and what the gradient's terms
    add up to without their signs: an error of each probability moves it by so much.
    """
    teacher, student = teacher.to(dtype), student.detach().to(dtype, copy=True).requires_grad_()
    n = teacher.shape[2]
    hidden = torch.ones(n, n, dtype=torch.bool, device="cuda").triu(1)
    scale = teacher.shape[-1] ** -0.5
    scores = [(x @ x.mT * scale).masked_fill(hidden, -1e30) for x in (teacher, student)]
    log_t, log_s = (x.log_softmax(-1) for x in scores)
    rows = (log_t.exp() * (log_t - log_s)).sum(-1)
    (gradient,) = torch.autograd.grad(rows, student, upstream.to(dtype))
    with torch.no_grad():
        weight = (log_t.exp() + log_s.exp()) * upstream.to(dtype).abs()[..., None] * scale
        size = (weight + weight.mT) @ student.abs()
        return rows.detach(), [x.logsumexp(-1) for x in scores], gradient, size


def norm(x):
    return x.double().norm().item() if torch.isfinite(x).all() else math.inf


def _triton(teacher, student):
    from linearard.ops.relation_kl import triton
    from linearard.ops.relation_kl.autograd import Relation
    from linearard.ops.relation_kl.visibility import Visibility

    return triton, [Relation(teacher, None, student, None)], Visibility(causal=True)


def check_forward(case, shape, kind="near", amplitude=1.0, seed=0):
    """Rows and statistics; returns what a check of the gradient needs."""
    teacher, student, upstream = draw(shape, seed, kind, amplitude)
    scale = shape[-1] ** -0.5
    truth, plain = (dense(teacher, student, upstream, x) for x in (torch.float64, torch.bfloat16))
    rows, stats = relation.forward(teacher, student, scale, fill=math.nan)
    torch.cuda.synchronize()
    largest = max(1.0, *(x.abs().max().item() for x in truth[1]))
    allowed = max(2e-5 * norm(truth[0]), 1e-6 * largest * math.sqrt(rows.numel()))
    error = norm(rows - truth[0])
    assert error <= allowed, f"{case}: rows off by {error:.2e}, allowed {allowed:.2e}"
    assert (rows[..., 0] == 0).all(), f"{case}: the first row is not exactly 0"
    offset_t, offset_s, ratio, inverse = stats.double().view(4, *rows.shape)[..., 1:]
    for want, got in zip(
        (x[..., 1:] for x in truth[1]),
        (
            -offset_t * math.log(2) - inverse.log() - ratio.log(),
            -offset_s * math.log(2) - inverse.log(),
        ),
        strict=True,
    ):
        off = (got - want).abs().max().item()
        assert off <= 2e-6 * largest, f"{case}: logsumexp off by {off:.2e}"
    if kind == "equal":
        assert (rows == 0).all() and (stats[2] == 1).all(), f"{case}: equal models are not 0"
    return teacher, student, upstream, scale, stats, truth, plain


def check_gradient(case, made, got, equal=False):
    truth, plain = made[5][2], made[6][2]
    probabilities = 2 * torch.finfo(torch.float32).eps * norm(made[5][3])
    allowed = max(2 * norm(plain - truth), 4e-3 * norm(truth), probabilities)
    error = norm(got - truth)
    assert error <= allowed, f"{case}: gradient off by {error:.2e}, allowed {allowed:.2e}"
    assert not equal or (got == 0).all(), f"{case}: equal models have a gradient"
    return error / allowed


def forward_small():
    for shape in SMALL:
        say("forward", shape)
        check_forward(shape, shape)
    return {}


def _backward_small(ordered):
    errors = {}
    for shape in SMALL:
        say("backward", "ordered" * ordered, shape)
        made = check_forward(shape, shape)
        teacher, student, upstream, scale, stats = made[:5]
        got = [
            relation.backward(teacher, student, stats, upstream, scale, ordered, fill=math.nan)
            for _ in range(20 if ordered else 1)
        ]
        torch.cuda.synchronize()
        errors[str(shape)] = check_gradient(shape, made, got[0])
        assert all(torch.equal(x, got[0]) for x in got), f"{shape}: repeats differ"
    return errors


def exact(cases=40):
    """Random odd shapes of all kinds, with our statistics and Triton's in each other's backward."""
    dice = random.Random(0)
    worst = 0.0
    for i in range(cases):
        kind = ("near", "strided", "rising", "equal", "leap")[i % 5]
        tokens = dice.choice([2, 41, 127, 128, 129, 255, 401, 1023, dice.randrange(2, 1500)])
        shape = (dice.choice([1, 2]), dice.choice([1, 3, 9]), tokens, dice.choice([64, 128]))
        amplitude = 40.0 if i % 8 == 0 else 1.0
        case = f"{shape} {kind} {amplitude}"
        say(case)
        made = check_forward(case, shape, kind, amplitude, i)
        teacher, student, upstream, scale, stats = made[:5]
        for ordered in (False, True):
            got = relation.backward(teacher, student, stats, upstream, scale, ordered, math.nan)
            worst = max(worst, check_gradient(f"{case} {ordered}", made, got, kind == "equal"))
        triton, relations, visible = _triton(teacher, student)
        (got, _), *_ = triton.backward(
            [upstream], [stats], relations, visible, scale, [(True, False)]
        )
        check_gradient(f"{case}: Triton's backward, our statistics", made, got)
        _, (theirs,) = triton.forward(relations, visible, scale)
        got = relation.backward(teacher, student, theirs.contiguous(), upstream, scale, i % 2 == 1)
        check_gradient(f"{case}: our backward, Triton's statistics", made, got)
    return {"worst_of_allowed": worst}


VARIANTS = {  # of the kernels, for what their choices are worth
    "free": (),
    "ordered": (),
    "without adds (wrong)": ("WITHOUT_ADDS=1",),
    "polynomial 1/8": ("POLYNOMIAL_EVERY=8",),
}


def parts(shape, rounds=7):
    """Milliseconds of each kernel, in each variant: the medians. A variant may fail."""
    teacher, student, upstream = draw(shape, 0)
    scale, result = shape[-1] ** -0.5, {}
    for variant, launcher.defines in VARIANTS.items():
        times = {}
        for _ in range(rounds):
            marks = []

            def mark(name, marks=marks):
                marks.append((name, torch.cuda.Event(enable_timing=True)))
                marks[-1][1].record()

            mark("start")
            try:
                _, stats = relation.forward(teacher, student, scale)
                mark("forward")
                ordered = variant == "ordered"
                relation.backward(teacher, student, stats, upstream, scale, ordered, parts=mark)
            except launcher.LaunchError as error:
                say(f"{variant} does not run: {error}")
                break
            torch.cuda.synchronize()
            for (_, before), (name, after) in itertools.pairwise(marks):
                times.setdefault(name, []).append(before.elapsed_time(after))
        result[variant] = {name: round(sorted(t)[len(t) // 2], 4) for name, t in times.items()}
        say(variant, result[variant])
    launcher.defines = ()
    return result


def timed(shape, rounds=9):
    """The design beside Triton, cuDNN and flash, taken in turns in this process."""
    teacher, student = product.operands(shape)
    candidates = product.candidates_at(shape)
    candidates = {{"forward": "triton_forward", "forward_backward": "triton"}.get(k, k): v
                  for k, v in candidates.items()}  # fmt: skip
    scale = shape[-1] ** -0.5
    own = {
        "cuda_forward": lambda: relation.forward(teacher.detach(), student.detach(), scale),
        "cuda": lambda: torch.autograd.grad(relation.relation_kl(teacher, student), student),
        "cuda_ordered": lambda: torch.autograd.grad(
            relation.relation_kl(teacher, student, True), student
        ),
    }
    for name, run in own.items():
        say(name)
        try:
            run()
            torch.cuda.synchronize()
        except RuntimeError as error:
            say(f"{name} does not run: {error}")
            continue
        candidates[name] = run
    times = product.interleaved(candidates, rounds, 4 if shape[2] <= 8192 else 1)
    middle = {name: t["p50"] for name, t in times.items()}
    for name in ("cuda", "cuda_ordered"):
        for other in ("triton", "cudnn", "flash"):
            if name in middle and other in middle:
                times[f"{name}_over_{other}"] = round(middle[name] / middle[other], 3)
    u = shape[0] * shape[1] * shape[2] ** 2 * shape[3]
    if "cuda" in middle:
        times["cuda_forward_tflops"] = round(2 * u / middle["cuda_forward"] / 1e9)
        times["cuda_tflops"] = round(6 * u / middle["cuda"] / 1e9)
    say({k: v["p50"] if isinstance(v, dict) else v for k, v in times.items()})
    return times


SHAPES = {f"d{s[3]}.t{s[2]}": s for s in (*product.SHAPES, product.LONG)}
# name -> (what it does, seconds that it may take)
STAGES = {
    "build": (build, 150),
    "copy": (lambda: _probe("copy"), 60),
    "products": (lambda: _probe("products"), 60),
    "adds": (lambda: _probe("adds"), 60),
    "forward": (forward_small, 60),
    "backward": (lambda: _backward_small(False), 60),
    "ordered": (lambda: _backward_small(True), 60),
    "exact": (exact, 150),
    "parts.d128.t16384": (lambda: parts((1, 32, 16384, 128)), 100),
    "parts.d128.t32768": (lambda: parts((1, 32, 32768, 128), 5), 100),
    "parts.d128.t4096": (lambda: parts((1, 32, 4096, 128)), 100),
    "parts.d64.t8192": (lambda: parts((1, 9, 8192, 64)), 60),
} | {f"time.{name}": (lambda s=s: timed(s), 120) for name, s in SHAPES.items()}
