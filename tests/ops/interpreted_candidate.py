"""The candidate for the portable kernels on CPU tensors; run with TRITON_INTERPRET=1."""

import importlib

import pytest
import torch
from interpreter import exact_products, one_patch_a_launch  # noqa: F401
from layer_cases import check_layer
from relation_oracle import Case, check, check_identical

from benchmarks import portable_kernels
from linearard.ops.relation_kl import dispatch

# the probability of a hidden pair may overflow; it is replaced, not multiplied
pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]

CASES = [
    Case(41, 80, heads=3, batch=2, padding="left"),
    Case(67, 64, heads=1, padding="holes"),
    Case(67, 96, heads=1, causal=False),
    Case(41, 64, heads=4, kv_heads=2),
    Case(35, 40, heads=3, kv_heads=1, causal=False, padding="left", strided=True),
    Case(67, 24, heads=2, kv_heads=1, window=33, padding="holes"),
    Case(67, 16, heads=1, causal=False, window=5),
    Case(100, 16, heads=1, documents=(0, 33, 1, 0, 30, 36, 0)),
    Case(100, 16, heads=2, kv_heads=1, documents=(10, 64, 26), causal=False),
    Case(96, 16, heads=1, documents=(50, 46), window=20, padding="left", weights=(True,) * 3),
    Case(67, 64, heads=1, amplitude=40.0),
    Case(40, 16, heads=2, batch=2, padding="all"),
]


@pytest.fixture(autouse=True)
def candidate(monkeypatch):
    monkeypatch.setattr(dispatch, "_triton", lambda: portable_kernels)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_candidate(case):
    check(case, "triton")


@pytest.mark.parametrize("kv_heads", [None, 1])
@pytest.mark.parametrize(
    "case",
    [Case(67, 16, heads=2, batch=2), Case(99, 16, heads=2, window=30)],
    ids=str,
)
def test_weights_in_panels(case, kv_heads, monkeypatch):
    """Memory for a few blocks of rows of few heads at a time."""
    module = importlib.import_module("benchmarks.portable_kernels.backward")
    monkeypatch.setattr(module, "_ROOM_BYTES", 4 * 2 * 64 * 64)
    check(Case(**{**vars(case), "kv_heads": kv_heads}), "triton")


@pytest.mark.parametrize("kv_heads", [None, 1])
@pytest.mark.parametrize("amplitude", [1.0, 40.0])
def test_float16_with_offsets_that_do_and_do_not_suffice(amplitude, kv_heads):
    """Scores far above those of the first tiles make a block of rows start again, with maxima."""
    case = Case(131, 64, heads=1, amplitude=amplitude, kv_heads=kv_heads)
    check(case, "triton", torch.float16)


def test_layers_and_identical_models():
    check_layer(Case(67, 24, batch=2), {"q": 3, "k": 1}, "triton", torch.float16)
    check_identical(Case(67, 16, padding="holes", amplitude=40.0), "triton")
