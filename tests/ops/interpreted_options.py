"""Window, documents, weights and edges in the Triton kernels on CPU tensors.

Run by test_relation_kl_interpreted.py with TRITON_INTERPRET=1.
"""

import importlib
import math
import random

import pytest
import torch
from interpreter import exact_products, one_patch_a_launch  # noqa: F401
from layer_cases import HEADS, check_layer
from random_cases import compile_classes, draw_case
from relation_oracle import Case, check, check_identical, draw

from linearard.ops.relation_kl import attention_kl, layer_relation_kl, relation_kl

# the probability of a hidden pair may overflow; it is replaced, not multiplied
pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]

OPTIONS = [
    Case(70, 16, heads=1, batch=2, window=9),
    Case(99, 16, heads=1, window=70),
    Case(67, 24, heads=2, kv_heads=1, window=33, padding="holes"),
    Case(67, 16, heads=1, causal=False, window=5),
    Case(67, 40, heads=2, kv_heads=1, causal=False, window=35),
    Case(100, 16, heads=1, documents=(0, 33, 1, 0, 30, 36, 0)),
    Case(100, 16, heads=2, kv_heads=1, documents=(10, 64, 26), causal=False),
    Case(96, 16, heads=1, documents=(50, 46), window=20, padding="left", weights=(True,) * 3),
    Case(67, 64, heads=1, amplitude=40.0),
    Case(67, 64, heads=2, kv_heads=1, amplitude=40.0, window=40, causal=False),
    Case(40, 16, heads=2, batch=2, padding="all"),
    Case(1, 16, heads=1, causal=False),
    Case(33, 16, heads=1, window=1),
]


def through_descriptors(monkeypatch):
    for name in ("forward", "backward"):
        module = importlib.import_module(f"linearard.ops.relation_kl.triton.{name}")
        monkeypatch.setattr(module, "tma_fits", lambda *operands: True)


@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_options(case):
    check(case, "triton")


@pytest.mark.parametrize("kv_heads", [None, 1])
@pytest.mark.parametrize(
    "case",
    [
        Case(67, 64, heads=1, amplitude=40.0),
        Case(91, 192, heads=1, window=32, temperature=0.5),
        Case(130, 72, heads=1, amplitude=4.0, causal=False, padding="right"),
    ],
    ids=str,
)
def test_options_one_column_has_all_the_probability(case, kv_heads):
    """Plain float16 is exact there: a score minus itself. What rounds a score spoils every pair.

    The interpreter's multiply-add rounds once, as a GPU's does.
    """
    check(Case(**{**vars(case), "kv_heads": kv_heads}), "triton", torch.float16)


@pytest.mark.parametrize("case", [OPTIONS[1], OPTIONS[4], OPTIONS[7]], ids=str)
def test_options_through_tensor_descriptors(case, monkeypatch):
    through_descriptors(monkeypatch)
    check(case, "triton")


@pytest.mark.parametrize(
    "kind", [k for k in compile_classes() if k.dtype != "bfloat16" and k.head_dim <= 128], ids=str
)
def test_random_calls(kind, monkeypatch):
    if kind.index % 2:
        through_descriptors(monkeypatch)
    rng = random.Random(kind.index)
    case = draw_case(kind, rng, largest=70)
    fewer = {"heads": 1} if kind.kv_heads is None else {"heads": 2, "kv_heads": 1}
    check(
        Case(**{**vars(case), "batch": min(case.batch, 2), **fewer}),
        "triton",
        getattr(torch, kind.dtype),
    )


LAYERS = [  # heads, case, dtype; every other one through descriptors
    (HEADS[0], Case(31, 24, batch=2, padding="holes"), torch.float32),
    (HEADS[1], Case(35, 16, causal=False, window=9, strided=True), torch.float32),
    (HEADS[2], Case(67, 16, documents=(30, 0, 37)), torch.float16),
    (HEADS[0], Case(67, 40, batch=2, window=20, weights=(True, False, True)), torch.float16),
    (HEADS[1], Case(35, 16, causal=False, padding="left"), torch.float32),
    (HEADS[2], Case(31, 16, batch=2), torch.float32),
]


@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_layers(number, monkeypatch):
    """Relations that share a launch, to the bit what they are alone."""
    heads, case, dtype = LAYERS[number]
    if number % 2:
        through_descriptors(monkeypatch)
    frozen, unused = (("q",), ("v",)) if heads is HEADS[0] else ((), ())
    check_layer(case, heads, "triton", dtype, frozen=frozen, unused=unused)


def test_options_a_layer_is_one_launch_each_way(monkeypatch):
    launches = []
    for name in ("forward", "backward"):
        module = importlib.import_module(f"linearard.ops.relation_kl.triton.{name}")
        on_device = module.on_device
        monkeypatch.setattr(
            module, "on_device", lambda x, n=name, f=on_device: launches.append(n) or f(x)
        )
    pairs = {}
    for name, heads in {"q": 3, "k": 1, "v": 1}.items():
        q_t, _, q_s, _, _ = draw(Case(40, 16, heads=heads), torch.float32, "cpu")
        pairs[name] = (q_t, q_s.requires_grad_())
    losses = layer_relation_kl(pairs, implementation="triton")
    sum(losses.values()).backward()
    assert launches == ["forward", "backward"]
    assert all((student.grad != 0).any() for _, student in pairs.values())


@pytest.mark.parametrize("kv_heads", [None, 1])
@pytest.mark.parametrize(
    "case",
    [
        Case(41, 24, batch=2),
        Case(40, 16, window=7, causal=False),
        Case(41, 16, documents=(12, 29), window=20),
        Case(41, 16, padding="holes", amplitude=40.0),
    ],
    ids=str,
)
def test_identical_models_cost_nothing(case, kv_heads):
    check_identical(Case(**{**vars(case), "kv_heads": kv_heads}), "triton")


def test_options_nothing_is_computed_outside_the_window(monkeypatch):
    """Loads of a tile are counted: twice the tokens, twice the tiles."""

    def tiles(tokens, **limits):
        q_t, _, q_s, _, _ = draw(Case(tokens, 16, heads=1), torch.float32, "cpu")
        loaded.clear()
        loss = relation_kl(q_t, q_s.requires_grad_(), implementation="triton", **limits)
        forward = len(loaded)
        loss.backward()
        return forward, len(loaded) - forward

    loaded = []
    for name in ("forward", "backward_kernel"):
        module = importlib.import_module(f"linearard.ops.relation_kl.triton.{name}")
        original = module.load_tokens

        def counting(*args, original=original, **kwargs):
            loaded.append(args[2])
            return original(*args, **kwargs)

        monkeypatch.setattr(module, "load_tokens", counting)
    # tiles of 32 x 32: two models, each block its own rows and the tiles of its columns
    assert tiles(96) == (2 * (3 + 6), 2 * (3 + 9))
    for tokens in (96, 192):
        blocks = tokens // 32
        windowed = tiles(tokens, window=32)
        assert windowed == (2 * (2 * blocks + blocks - 1), 2 * (2 * blocks + 2 * (blocks - 1)))
        packed = tiles(tokens, cu_seqlens=list(range(0, tokens + 1, 32)))
        assert packed == (2 * 2 * blocks, 2 * 2 * blocks)


def test_options_offsets_beyond_32_bits():
    """Views into lazily filled buffers of up to 9 GB; only the tokens in use take memory."""
    half = 2**30 + 16  # twice this does not fit
    near_32 = 2**24 - 16  # of a token: the largest step that tiles of 128 tokens address
    layouts = {
        "batch": ((3, 1, 40, 16), (half, 640, 16, 1)),
        "head": ((1, 3, 40, 16), (640, half, 16, 1)),
        "token": ((1, 1, 200, 16), (640, 16, near_32, 1)),
        "copied": ((1, 1, 40, 16), (640, 16, 2**26, 1)),
    }
    for shape, strides in layouts.values():
        plain = draw(Case(shape[2], 16, heads=shape[1], batch=shape[0]), torch.float16, "cpu")
        expected, gradients = [], []
        for spread in (False, True):
            operands = []
            for x in plain[:4:2]:
                if spread:
                    size = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
                    x = torch.empty(size, dtype=x.dtype).as_strided(shape, strides).copy_(x)
                operands.append(x)
            student = operands[1].detach().requires_grad_()
            rows = relation_kl(operands[0], student, reduction="none", implementation="triton")
            expected.append(rows.detach())
            gradients.append(torch.autograd.grad(rows.sum(), student)[0])
        assert torch.equal(*expected) and torch.equal(*gradients)


def test_options_nan_in_padding_and_upstream_goes_nowhere():
    q_t, k_t, q_s, k_s, valid = draw(
        Case(40, 16, heads=2, kv_heads=1, batch=2, padding="all"), torch.float32, "cpu"
    )
    gone = ~valid[:, None, :, None]
    operands = [x.masked_fill(gone, math.nan) for x in (q_t, k_t, q_s, k_s)]
    leaves = [x.requires_grad_() for x in operands[2:]]
    loss = attention_kl(*operands, mask=valid, window=7, implementation="triton")
    loss.backward()
    assert math.isfinite(loss.item()) and loss.item() > 0
    for x in leaves:
        assert (x.grad[0] == 0).all() and torch.isfinite(x.grad).all() and (x.grad[1] != 0).any()
