"""The Hopper design's kernels, emulated: values, statistics, gradients, and that defects are seen."""

import ctypes
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
import emulated

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
LN2 = 0.6931471805599453


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return emulated.build(tmp_path_factory.mktemp("hopper"))


@pytest.fixture(scope="module")
def polynomial(tmp_path_factory):
    return emulated.build(tmp_path_factory.mktemp("hopper"), defines=("POLYNOMIAL_EVERY=4",))


def draw(shape, seed=0, amplitude=1.0, kind="near"):
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(shape, generator=generator) * amplitude
    noise = torch.randn(shape, generator=generator) * amplitude
    student = teacher + (0.3 if kind != "far" else 1.0) * noise
    if kind == "rising":  # what comes later in a row's sweep, the first tokens, scores most
        size = torch.linspace(6, 0.5, shape[2])[:, None]
        teacher, student = teacher.abs() * size, student.abs() * size
    if kind == "leap":  # beyond what float32 holds over the offset of the diagonal's tile
        teacher[:, :, 3::101] *= 60
        student[:, :, 3::101] *= 60
    upstream = torch.randn(shape[:3], generator=generator)
    return teacher.bfloat16(), student.bfloat16(), upstream


@pytest.mark.parametrize("kind", ["rising", "equal"])
def test_polynomial_exponentials(polynomial, kind):
    teacher, student, upstream = draw((1, 2, 300, 64), 4, kind=kind)
    student = teacher.clone() if kind == "equal" else student
    kl, stats = emulated.forward(polynomial, teacher, student, 0.125, 1)
    gradient = emulated.backward(polynomial, teacher, student, stats, upstream, 0.125, False, 2)
    want, *_, want_gradient = emulated.reference(teacher, student, upstream, 0.125)
    np.testing.assert_allclose(kl.numpy(), want, rtol=2e-5, atol=1e-5)
    error = np.linalg.norm(gradient.double().numpy() - want_gradient)
    assert error <= 4e-3 * np.linalg.norm(want_gradient)
    assert kind != "equal" or ((kl == 0).all() and (gradient == 0).all())


CASES = [  # batch, heads, tokens, head_dim, kind, amplitude, ordered
    (1, 3, 2, 64, "near", 1.0, False),
    (2, 1, 41, 128, "near", 1.0, False),
    (1, 1, 127, 64, "far", 1.0, True),
    (1, 2, 128, 128, "near", 2.0, False),
    (2, 3, 129, 64, "near", 1.0, True),
    (1, 1, 401, 128, "far", 1.0, True),
    (1, 1, 401, 64, "near", 40.0, False),
    (1, 1, 520, 64, "rising", 1.0, False),
    (1, 2, 300, 128, "rising", 1.0, True),
    (1, 2, 300, 64, "leap", 1.0, False),
    (1, 1, 500, 128, "leap", 1.0, True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(library, case):
    batch, heads, tokens, dim, kind, amplitude, ordered = case
    seed = tokens + dim
    teacher, student, upstream = draw((batch, heads, tokens, dim), seed, amplitude, kind)
    scale = dim**-0.5
    kl, stats = emulated.forward(library, teacher, student, scale, seed, together=2)
    gradient = emulated.backward(library, teacher, student, stats, upstream, scale, ordered, seed)
    want, lse_t, lse_s, want_gradient = emulated.reference(teacher, student, upstream, scale)

    largest = max(np.abs(lse_t).max(), np.abs(lse_s).max(), 1.0)
    budget = 4 * np.finfo(np.float32).eps * largest  # a rounding of the exponents
    np.testing.assert_allclose(kl.numpy(), want, rtol=2e-5, atol=budget)
    assert (kl[..., 0] == 0).all()
    offset_t, offset_s, ratio, inverse = stats.double().view(4, batch, heads, tokens)[..., 1:]
    got_s = -offset_s * LN2 - inverse.log()
    got_t = -offset_t * LN2 - inverse.log() - ratio.log()
    np.testing.assert_allclose(got_s.numpy(), lse_s[..., 1:], rtol=0, atol=budget)
    np.testing.assert_allclose(got_t.numpy(), lse_t[..., 1:], rtol=0, atol=budget)
    assert (stats.view(4, batch, heads, tokens)[:2, ..., 0] == -torch.inf).all()
    error = np.linalg.norm(gradient.double().numpy() - want_gradient)
    # weights and result are rounded to bfloat16; where all probability is one column's, to nothing
    assert error <= 4e-3 * np.linalg.norm(want_gradient) + 1e-5 * largest


@pytest.mark.parametrize("dim", [64, 128])
def test_equal_models_are_exactly_zero(library, dim):
    teacher, _, upstream = draw((1, 1, 300, dim), 3, kind="rising")
    student = teacher.clone()
    kl, stats = emulated.forward(library, teacher, student, dim**-0.5, 1)
    assert (kl == 0).all() and (stats[2] == 1).all()
    gradient = emulated.backward(library, teacher, student, stats, upstream, dim**-0.5, False, 2)
    assert (gradient == 0).all()


def test_strides(library):
    """[B, N, H, D] as projections leave it, inside a larger buffer."""
    teacher, student, upstream = draw((2, 150, 2, 192), 5)
    teacher, student = (x[..., 8:72].transpose(1, 2) for x in (teacher, student))
    upstream = upstream[:, :, :1].reshape(2, 150)[:, None].expand(2, 2, 150)
    kl, stats = emulated.forward(library, teacher, student, 0.1)
    gradient = emulated.backward(library, teacher, student, stats, upstream, 0.1, False)
    want, _, _, want_gradient = emulated.reference(teacher, student, upstream, 0.1)
    np.testing.assert_allclose(kl.numpy(), want, rtol=2e-5, atol=2e-6)
    error = np.linalg.norm(gradient.double().numpy() - want_gradient)
    assert error <= 4e-3 * np.linalg.norm(want_gradient)


def test_ordered_adds_do_not_depend_on_who_is_first(library):
    teacher, student, upstream = draw((1, 1, 520, 64), 6)
    _, stats = emulated.forward(library, teacher, student, 0.125)
    runs = [
        emulated.backward(
            library, teacher, student, stats, upstream, 0.125, True, seed, resident, raw=True
        )[1]
        for seed, resident in ((1, 5), (2, 3), (3, 1))
    ]
    assert all(torch.equal(run, runs[0]) for run in runs)


@pytest.mark.parametrize("dim", [64, 128])
def test_shared_memory_is_what_the_launcher_asks_for(library, dim):
    from benchmarks.designs.hopper_cuda import relation

    for i, kind in enumerate(("forward", "backward")):
        needed = library.emulated_shared(i, dim) + 1024  # to the first multiple of 1024
        assert needed <= relation._shared(kind, dim) <= 232448


def test_probes(library):
    """What the first seconds on a GPU check, here against the emulator."""
    from benchmarks.designs.hopper_cuda import probes

    def launch(name, grid, arguments):
        made = [emulated.tensor_map(x) if i < maps else x for i, x in enumerate(arguments)]
        made = [ctypes.byref(x) if isinstance(x, emulated.TensorMap) else x for x in made]
        made = [emulated.pointer(x) if isinstance(x, torch.Tensor) else x for x in made]
        extra = {"copy": (7,), "products": (7,), "adds": (grid, 7)}[name]
        made = made[:3] if name == "products" else made
        emulated.check(getattr(library, f"emulated_{name}")(*made, *extra))

    for name, maps in (("copy", 1), ("products", 2), ("adds", 0)):  # noqa: B007
        getattr(probes, f"check_{name}")(launch, "cpu")


DEFECTS = {
    "no fence before W is read": ("backward.cu", "        fence_async();\n", ""),
    "W of a tile too early": ("backward.cu", "column_product(n - 1);", "column_product(n);"),
    "no wait for the other group's W": (
        "backward.cu",
        "        mbarrier_wait(written + 8 * odd, parity);\n",
        "",
    ),
    "a slot given back under a product": (
        "forward.cu",
        "            add(t0, s0);\n            wait(t1, s1);",
        "            release();\n            add(t0, s0);\n            wait(t1, s1);",
    ),
    "scores read before they are there": ("forward.cu", "        wgmma_wait<0>();\n", ""),
    "no fence after registers were written": ("backward.cu", "        wgmma_fence();\n", ""),
    "a wait on the wrong phase": (
        "tiles.h",
        "ring.phase ^ 1);",
        "ring.phase);",
    ),
    "too few bytes expected": (
        "tiles.h",
        "mbarrier_expect(full, TILE<D>);",
        "mbarrier_expect(full, TILE<D> / 2);",
    ),
    "the wrong swizzle of W": ("backward.cu", "(k % 4 << 5)", "(k % 4 << 4)"),
    "no adds in order": ("backward.cu", "if (ORDERED) order.wait(n);", ""),
}


@pytest.mark.parametrize("name", ["no fence before W is read", "the wrong swizzle of W"])
def test_defects_are_seen(name, tmp_path):
    """Two of them: each costs a compilation. ``python tests/designs/test_hopper_cuda.py``: all."""
    assert seen(name, tmp_path)


def seen(name, folder):
    library = emulated.build(folder, DEFECTS[name])
    teacher, student, upstream = draw((1, 1, 520, 64), 8)
    want, *_, want_gradient = emulated.reference(teacher, student, upstream, 0.125)
    runs = []
    for seed in range(4):
        try:
            kl, stats = emulated.forward(library, teacher, student, 0.125, seed)
            gradient, sums = emulated.backward(
                library, teacher, student, stats, upstream, 0.125, True, seed, 5, raw=True
            )
        except AssertionError as error:
            return str(error)
        error = np.linalg.norm(gradient.double().numpy() - want_gradient)
        if not error <= 4e-3 * np.linalg.norm(want_gradient):
            return f"gradient off by {error:.1e}"
        if not np.abs(kl.numpy() - want).max() < 1e-5:
            return "values off"
        runs.append(sums)
    return "" if all(torch.equal(runs[0], x) for x in runs) else "runs differ"


if __name__ == "__main__":
    import tempfile

    for name in DEFECTS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name}: {seen(name, Path(folder)) or 'NOT SEEN'}", flush=True)
