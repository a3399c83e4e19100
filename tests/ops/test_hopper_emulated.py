"""The Hopper kernels, emulated: values, statistics, gradients, and that defects are seen."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import emulated

from linearard.ops.relation_kl.visibility import Visibility

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
LN2 = 0.6931471805599453


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return emulated.build(tmp_path_factory.mktemp("hopper"))


@pytest.fixture
def gpu(library, monkeypatch):
    return emulated.Emulated(library, monkeypatch)


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


def limits(window=None, documents=None):
    """Causal, and a window or documents of such lengths."""
    edges = documents and torch.tensor([0, *documents]).cumsum(0, dtype=torch.int32)
    return Visibility(causal=True, window=window, cu_seqlens=edges)


CASES = [  # batch, heads, tokens, head_dim, kind, amplitude, ordered, limits
    (1, 1, 1, 64, "near", 1.0, True),
    (1, 3, 2, 64, "near", 1.0, False),
    (2, 1, 41, 128, "near", 1.0, False),
    (1, 1, 127, 64, "far", 1.0, True),
    (1, 2, 128, 128, "near", 2.0, False),
    (2, 2, 129, 64, "near", 1.0, True),
    (1, 1, 401, 128, "far", 1.0, True),
    (1, 1, 401, 64, "near", 40.0, False),
    (1, 1, 520, 64, "rising", 1.0, False),
    (1, 2, 300, 128, "rising", 1.0, True),
    (1, 2, 300, 64, "leap", 1.0, False),
    (1, 1, 500, 128, "leap", 1.0, True),
    (1, 2, 150, 64, "near", 1.0, True, limits(1)),
    (1, 1, 401, 64, "near", 1.0, False, limits(2)),
    (2, 1, 401, 64, "far", 1.0, True, limits(64)),
    (1, 1, 700, 128, "near", 1.0, True, limits(65)),
    (1, 1, 700, 64, "rising", 1.0, False, limits(150)),
    (1, 1, 600, 64, "leap", 1.0, True, limits(257)),
    (1, 2, 401, 64, "near", 40.0, True, limits(400)),
    (1, 2, 530, 64, "leap", 1.0, True, limits(None, (3, 1, 300, 0, 1, 200, 25))),
    (1, 1, 700, 128, "near", 1.0, False, limits(100, (650, 50))),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(gpu, case):
    batch, heads, tokens, dim, kind, amplitude, ordered, *limit = case
    visible = limit[0] if limit else emulated.CAUSAL
    seed = tokens + dim
    teacher, student, upstream = draw((batch, heads, tokens, dim), seed, amplitude, kind)
    scale = dim**-0.5
    pairs = [(teacher, student)]
    (kl,), stats = gpu.forward(pairs, scale, seed, visible)
    (gradient,) = gpu.backward(pairs, stats, [upstream], scale, ordered, seed, visible=visible)
    want, lse_t, lse_s, want_gradient = emulated.reference(
        teacher, student, upstream, scale, visible
    )

    largest = max(np.abs(lse_t).max(), np.abs(lse_s).max(), 1.0)
    budget = 4 * np.finfo(np.float32).eps * largest  # a rounding of the exponents
    np.testing.assert_allclose(kl.numpy(), want, rtol=2e-5, atol=budget)
    stats = stats.view(4, batch, heads, tokens)
    alone = torch.from_numpy((~emulated.hidden_from(tokens, visible)).sum(1) == 1)
    assert (kl[..., alone] == 0).all() and (stats[:2, ..., alone] == -torch.inf).all()
    if alone.all():
        assert (gradient == 0).all()
    offset_t, offset_s, ratio, inverse = stats.double()[..., ~alone]
    got_s = -offset_s * LN2 - inverse.log()
    got_t = -offset_t * LN2 - inverse.log() - ratio.log()
    np.testing.assert_allclose(got_s.numpy(), lse_s[..., ~alone.numpy()], rtol=0, atol=budget)
    np.testing.assert_allclose(got_t.numpy(), lse_t[..., ~alone.numpy()], rtol=0, atol=budget)
    error = np.linalg.norm(gradient.double().numpy() - want_gradient)
    # weights and result are rounded to bfloat16; where all probability is one column's, to nothing
    assert error <= 4e-3 * np.linalg.norm(want_gradient) + 1e-5 * largest


ATTENTION = [  # batch, heads, key heads, tokens, head_dim, kind, amplitude, ordered, limits
    (1, 2, 2, 1, 64, "near", 1.0, True, emulated.CAUSAL),
    (2, 4, 2, 129, 64, "near", 1.0, True, emulated.CAUSAL),
    (1, 3, 1, 300, 64, "far", 1.0, False, emulated.CAUSAL),
    (1, 2, 2, 401, 128, "near", 2.0, True, emulated.CAUSAL),
    (2, 2, 1, 257, 128, "leap", 1.0, False, emulated.CAUSAL),
    (1, 4, 2, 330, 64, "rising", 1.0, True, limits(150)),
    (1, 2, 1, 200, 64, "near", 40.0, False, limits(1)),
    (1, 3, 1, 300, 64, "near", 1.0, True, limits(70, (100, 1, 199))),
]


def draw_attention(batch, heads, key_heads, tokens, dim, seed=0, amplitude=1.0, kind="near"):
    """(q_t, k_t, q_s, k_s) and the upstream gradient."""
    q_t, q_s, upstream = draw((batch, heads, tokens, dim), seed, amplitude, kind)
    k_t, k_s, _ = draw((batch, key_heads, tokens, dim), seed + 1, amplitude, kind)
    return (q_t, k_t, q_s, k_s), upstream


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_attention_agrees_with_float64(gpu, case):
    *sizes, kind, amplitude, ordered, visible = case
    operands, upstream = draw_attention(*sizes, sizes[3], amplitude, kind)
    scale = sizes[4] ** -0.5
    (kl,), stats = gpu.forward([operands], scale, 1, visible)
    (gradients,) = gpu.backward([operands], stats, [upstream], scale, ordered, 2, visible=visible)
    want, lse_t, lse_s, *wanted = emulated.attention_reference(operands, upstream, scale, visible)

    largest = max(np.abs(lse_t).max(), np.abs(lse_s).max(), 1.0)
    budget = 4 * np.finfo(np.float32).eps * largest  # a rounding of the exponents
    np.testing.assert_allclose(kl.numpy(), want, rtol=2e-5, atol=budget)
    alone = (~emulated.hidden_from(sizes[3], visible)).sum(1) == 1
    assert (kl[..., alone] == 0).all() and (gradients[0][:, :, alone] == 0).all()
    for gradient, expected in zip(gradients, wanted, strict=True):
        error = np.linalg.norm(gradient.double().numpy() - expected)
        assert error <= 4e-3 * np.linalg.norm(expected) + 1e-5 * largest


@pytest.mark.parametrize("columns", [(70,), (5, 7)], ids=["on the way", "in the last tile"])
def test_sums_at_the_end_of_what_float32_holds(gpu, columns):
    """2^127.5 over the diagonal's offset, one of a thread or two of a row."""
    q, k = torch.zeros(1, 1, 192, 64), torch.zeros(1, 1, 192, 64)
    q[..., 0] = 1
    k[:, :, columns, 0] = 127.5  # in units of the exponent
    operands = (q * 0, k * 0, q, k)
    operands = tuple(x.bfloat16() for x in operands)
    upstream = torch.ones(1, 1, 192)
    (kl,), stats = gpu.forward([operands], LN2)
    (gradients,) = gpu.backward([operands], stats, [upstream], LN2, True)
    want, *_, dq, dk = emulated.attention_reference(operands, upstream, LN2, emulated.CAUSAL)
    np.testing.assert_allclose(kl.numpy(), want, rtol=2e-5, atol=1e-4)
    for gradient, expected in zip(gradients, (dq, dk), strict=True):
        error = np.linalg.norm(gradient.double().numpy() - expected)
        assert error <= 4e-3 * np.linalg.norm(expected)


def test_attention_of_equal_models_is_exactly_zero(gpu):
    (q, k, *_), upstream = draw_attention(1, 4, 2, 300, 64, 3, kind="rising")
    operands = [(q, k, q.clone(), k.clone())]
    (kl,), stats = gpu.forward(operands, 0.125, 1)
    assert (kl == 0).all() and (stats[2] == 1).all()
    (gradients,) = gpu.backward(operands, stats, [upstream], 0.125, True, 2)
    assert all((x == 0).all() for x in gradients)


@pytest.mark.parametrize("ordered", [True, False])
def test_attention_in_parts(gpu, monkeypatch, ordered):
    """However many heads the workspace holds, whichever side is asked for, in whatever order."""
    operands, upstream = draw_attention(2, 4, 2, 150, 64)
    _, stats = gpu.forward([operands], 0.125)
    (whole,) = gpu.backward([operands], stats, [upstream], 0.125, ordered)
    for heads, needs in ((7, (True, False)), (1, (False, True))):
        monkeypatch.setattr(emulated.hopper, "_WORKSPACE_BYTES", heads * 256 * 64 * 4)
        (some,) = gpu.backward([operands], stats, [upstream], 0.125, ordered, heads, 4, needs=needs)
        for got, wanted, needed in zip(some, whole, needs, strict=True):
            if not needed:
                assert got is None
            elif ordered:
                assert torch.equal(got, wanted)
            else:
                assert (got - wanted).norm() < 1e-2 * wanted.norm()


@pytest.mark.parametrize("dim", [64, 128])
def test_equal_models_are_exactly_zero(gpu, dim):
    teacher, _, upstream = draw((1, 1, 300, dim), 3, kind="rising")
    pairs = [(teacher, teacher.clone())]
    (kl,), stats = gpu.forward(pairs, dim**-0.5, 1)
    assert (kl == 0).all() and (stats[2] == 1).all()
    (gradient,) = gpu.backward(pairs, stats, [upstream], dim**-0.5, False, 2)
    assert (gradient == 0).all()


def test_strides(gpu):
    """[B, N, H, D] as projections leave it, inside a larger buffer; and what must be copied."""
    teacher, student, upstream = draw((2, 150, 2, 192), 5)
    teacher, student = (x[..., 8:72].transpose(1, 2) for x in (teacher, student))
    student = student.transpose(2, 3).contiguous().transpose(2, 3)  # tokens contiguous
    upstream = upstream[:, :, :1].reshape(2, 150)[:, None].expand(2, 2, 150)
    (kl,), stats = gpu.forward([(teacher, student)], 0.1)
    (gradient,) = gpu.backward([(teacher, student)], stats, [upstream], 0.1, False)
    want, _, _, want_gradient = emulated.reference(teacher, student, upstream, 0.1)
    np.testing.assert_allclose(kl.numpy(), want, rtol=2e-5, atol=2e-6)
    error = np.linalg.norm(gradient.double().numpy() - want_gradient)
    assert error <= 4e-3 * np.linalg.norm(want_gradient)


def test_relations_together_are_those_apart(gpu, monkeypatch):
    """To the bit, whichever need a gradient, and however many heads the workspace holds."""
    made = [draw((2, heads, 130, 64), heads) for heads in (2, 1, 1)]
    pairs, grads = [x[:2] for x in made], [x[2] for x in made]
    apart = []
    for pair, grad in zip(pairs, grads, strict=True):
        (kl,), stats = gpu.forward([pair], 0.125)
        apart.append((kl, *gpu.backward([pair], stats, [grad], 0.125, True)))
    monkeypatch.setattr(emulated.hopper, "_WORKSPACE_BYTES", 3 * 3 * 256 * 64 * 4)
    together, stats = gpu.forward(pairs, 0.125, 1)
    for unused in (None, 1):
        asked = [None if i == unused else grad for i, grad in enumerate(grads)]
        gradients = gpu.backward(pairs, stats, asked, 0.125, True, 2)
        for i, (kl, gradient) in enumerate(apart):
            assert torch.equal(together[i], kl)
            assert gradients[i] is None if i == unused else torch.equal(gradients[i], gradient)


@pytest.mark.parametrize(
    ("heads", "fit", "together"),
    [(3, 8, 3), (8, 8, 8), (9, 8, 9), (32, 4, 4), (32, 5, 4), (13, 4, 5), (60, 32, 30), (9, 1, 1)],
)
def test_the_last_set_of_heads_is_full(heads, fit, together):
    """Or as full as can be: nine heads of which eight fit are not worked on as eight and a last one."""
    bytes_a_head = emulated.hopper._CACHE_BYTES // fit
    assert emulated.hopper.heads_together(heads, 1, bytes_a_head) == together


@pytest.mark.parametrize("apart", [False, True])
def test_who_adds_when_depends_on_tokens_alone(gpu, apart):
    """A head's gradients among others are to the bit what they are alone."""
    teacher, student, upstream = draw((1, 2, 700, 64), 9)
    keys_t, keys_s, _ = draw((1, 2, 700, 64), 10)
    operands = (teacher, keys_t, student, keys_s) if apart else (teacher, student)
    _, stats = gpu.forward([operands], 0.125)
    (whole,) = gpu.backward([operands], stats, [upstream], 0.125, True, 1, 4)
    alone = tuple(x[:, 1:2] for x in operands)
    _, stats = gpu.forward([alone], 0.125)
    (single,) = gpu.backward([alone], stats, [upstream[:, 1:2]], 0.125, True, 2, 1)
    pairs = zip(whole, single, strict=True) if apart else [(whole, single)]
    assert all(torch.equal(x[:, 1:2], y) for x, y in pairs)


@pytest.mark.parametrize(("dim", "tokens"), [(64, 700), (128, 500)])
@pytest.mark.parametrize("visible", [emulated.CAUSAL, limits(450)], ids=["causal", "window"])
def test_ordered_adds_do_not_depend_on_who_is_first(gpu, visible, dim, tokens):
    """So many blocks that each chain (two at 64) adds three times and more; two adds commute."""
    teacher, student, upstream = draw((1, 1, tokens, dim), 6)
    pairs = [(teacher, student)]
    _, stats = gpu.forward(pairs, 0.125, 0, visible)
    runs = []
    for seed, resident in ((1, 8), (2, 3), (3, 1)):
        gpu.backward(pairs, stats, [upstream], 0.125, True, seed, resident, visible)
        runs.append(gpu.sums)
    assert len(runs[0]) == (3 if dim == 64 else 2)
    assert all(np.array_equal(run, runs[0]) for run in runs)


def test_order_where_it_costs_nothing(gpu, monkeypatch):
    """Of many heads of 128, without limits; the gradient is that of the ordered adds."""
    monkeypatch.setattr(emulated.hopper, "_ORDER_PAYS", (2, 150))
    monkeypatch.setattr(emulated.hopper, "_WORKSPACE_BYTES", 2 * 384 * 128 * 4)  # a head at a time
    launched = []
    launch = emulated.hopper.driver.launch

    def watched(source, kernel, *rest):
        launched.append(kernel)
        launch(source, kernel, *rest)

    monkeypatch.setattr(emulated.hopper.driver, "launch", watched)
    cases = [
        (128, 2, 300, emulated.CAUSAL, "plain_ordered_"),
        (128, 1, 150, emulated.CAUSAL, "plain_"),
        (128, 2, 149, emulated.CAUSAL, "plain_"),
        (64, 2, 150, emulated.CAUSAL, "plain_"),
        (128, 2, 150, limits(100), ""),
    ]
    for dim, heads, tokens, visible, name in cases:
        ordered = "ordered" in name
        teacher, student, upstream = draw((1, heads, tokens, dim), 8)
        pairs = [(teacher, student)]
        _, stats = gpu.forward(pairs, 0.1, 0, visible)
        launched.clear()
        (free,) = gpu.backward(pairs, stats, [upstream], 0.1, False, 1, visible=visible)
        assert f"backward_{name}{dim}" in launched
        (strict,) = gpu.backward(pairs, stats, [upstream], 0.1, True, 2, visible=visible)
        error = (free.double() - strict.double()).norm() / strict.double().norm()
        assert error == 0 if ordered else error < 4e-3
    operands, upstream = draw_attention(1, 2, 1, 150, 128)
    _, stats = gpu.forward([operands], 0.1)
    launched.clear()
    gpu.backward([operands], stats, [upstream], 0.1, False, 1)
    assert "backward_ordered_128" in launched


def test_tiles_out_of_sight_are_not_read(gpu):
    """NaN in them would show."""
    visible = limits(100, (250, 390))
    pair = draw((1, 1, 640, 64), 7)[:2]
    for x in pair:
        x[:, :, :128] = torch.nan
    upstream = torch.ones(1, 1, 640)
    for ordered in (True, False):
        (kl,), stats = gpu.forward([pair], 0.125, 0, visible)
        (gradient,) = gpu.backward([pair], stats, [upstream], 0.125, ordered, visible=visible)
        assert kl[..., 384:].isfinite().all() and gradient[:, :, 384:].isfinite().all()
        assert kl[..., :128].isnan().any()


@pytest.mark.parametrize("dim", [64, 128])
def test_shared_memory_is_what_the_launcher_asks_for(library, dim):
    for i, kind in enumerate(("forward", "backward")):
        needed = library.emulated_shared(i, dim) + 1024  # to the first multiple of 1024
        assert needed <= emulated.hopper.shared_bytes(kind, dim) <= 232448


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
        "        rows.add_teacher(t, p, spare);\n        multiply(t",
        "        rows.add_teacher(t, p, spare);\n        free(done_s);\n        multiply(t",
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
        "mbarrier_expect(full, TILE<D, COUNT>);",
        "mbarrier_expect(full, TILE<D, COUNT> / 2);",
    ),
    "the wrong swizzle of W": ("backward.cu", "(k % 4 << 5)", "(k % 4 << 4)"),
    "no adds in order": (
        "backward.cu",
        "while (load_acquire(made) != before) {",
        "while (false) {",
    ),
    "an add that nobody is told of": (
        "backward.cu",
        "            store_release(made, before + 1);",
        "",
    ),
    "a store where a half before has added": (
        "backward.cu",
        "earlier ? 0 : within",
        "within",
    ),
    "a tile that one chain never wrote": (
        "backward.cu",
        "            store_fragment<D>(given.sums + other, columns_part);\n",
        "",
    ),
    "a store where its chain has added": (
        "backward.cu",
        "within >= CHAINS ? CHAINS : block + 1",
        "block + 1",
    ),
    "a second chain in no order": (
        "backward.cu",
        "while (load_acquire(made) != before) {",
        "while (turn.chain() ? load_acquire(made) == 0 && before > 0 : load_acquire(made) != before) {",
    ),
    "two chains that count as one": (
        "backward.cu",
        "(n < within ? n : within) / CHAINS",
        "(n < within ? n : within)",
    ),
    "a window one too wide": ("arguments.h", "row + 1 - window", "row - window"),
    "no mask at the low edge": ("backward.cu", "!PLAIN && n > whole", "false"),
    "tiles before the window left in the ring": (
        "forward.cu",
        "    skip(diagonal - before - lowest);\n\n",
        "\n",
    ),
    "sums that are lost": ("forward.cu", "ALL_BUT_IDLE, rows.lost())", "ALL_BUT_IDLE, false)"),
}


@pytest.mark.parametrize("name", ["no fence before W is read", "the wrong swizzle of W"])
def test_defects_are_seen(name, tmp_path, monkeypatch):
    """Two of them: each costs a compilation. ``python tests/ops/test_hopper_emulated.py``: all."""
    assert seen(name, tmp_path, monkeypatch)


def seen(name, folder, monkeypatch):
    gpu = emulated.Emulated(emulated.build(folder, DEFECTS[name]), monkeypatch)
    runs = []
    narrow = limits(150)
    kinds = [("near", emulated.CAUSAL), ("leap", narrow), ("near", emulated.CAUSAL)]
    for seed, (kind, visible) in enumerate([*kinds, ("near", emulated.CAUSAL), ("near", narrow)]):
        teacher, student, upstream = draw((1, 1, 1000, 64), 8, kind=kind)
        pairs = [(teacher, student)]
        want, *_, want_gradient = emulated.reference(teacher, student, upstream, 0.125, visible)
        try:
            (kl,), stats = gpu.forward(pairs, 0.125, seed, visible)
            (gradient,) = gpu.backward(pairs, stats, [upstream], 0.125, True, seed, 8, visible)
        except AssertionError as error:
            return str(error)
        error = np.linalg.norm(gradient.double().numpy() - want_gradient)
        if not error <= 4e-3 * np.linalg.norm(want_gradient):
            return f"gradient off by {error:.1e}"
        if not np.abs(kl.numpy() - want).max() < 1e-5 * max(1, np.abs(want).max()):
            return "values off"
        if visible is emulated.CAUSAL:
            runs.append(gpu.sums)
    return "" if all(np.array_equal(runs[0], x) for x in runs) else "runs differ"


if __name__ == "__main__":
    import tempfile

    for name in sys.argv[1:] or DEFECTS:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            print(f"{name}: {seen(name, Path(folder), patch) or 'NOT SEEN'}", flush=True)
