"""The shared-score backward in Triton's interpreter; run by test_designs.py with TRITON_INTERPRET=1."""

import sys
from pathlib import Path
from unittest import mock

import pytest

sys.path[:0] = [str(Path(__file__).parents[i] / part) for i, part in ((1, "ops"), (2, ""))]

from exact_products import exact_products  # noqa: E402, F401
from relation_oracle import Case, check  # noqa: E402

from benchmarks.designs.triton import shared_scores  # noqa: E402
from linearard.ops.relation_kl import triton as product  # noqa: E402
from linearard.ops.relation_kl.triton.tiles import Tile  # noqa: E402


@pytest.mark.parametrize("tile", [Tile(32, 64, 4, 1), Tile(64, 32, 4, 1)], ids=str)
@pytest.mark.parametrize("case", [Case(131, 24, batch=2), Case(67, 64, heads=1)], ids=str)
def test_backward_is_that_of_the_oracle(case, tile):
    def backward(*arguments):
        return shared_scores.backward(*arguments, tile, tma=False)  # no reduce-add here

    with mock.patch.object(product, "backward", backward):
        check(case, "triton")
