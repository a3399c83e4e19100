"""The candidate for the portable kernels fits every GPU it is for: no spills, enough shared memory."""

import importlib.util

import pytest
import torch

from linearard.ops.relation_kl.visibility import Visibility

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")

#: Shared memory that a block may have, KiB: A100; RTX 3090 and 4090, L40S; H100; B200.
SHARED = {80: 163, 89: 99, 90: 227, 100: 227}


@pytest.mark.parametrize(("architecture", "head_dim"), [(80, 128), (89, 256), (90, 64), (100, 64)])
def test_compiled_for(architecture, head_dim, monkeypatch):
    from ahead_of_time import reports

    like = torch.zeros(1, 4, 512, head_dim, dtype=torch.bfloat16)
    found = reports(architecture, monkeypatch, like, Visibility(causal=True))
    assert [r.name for r in found] == ["_forward_kernel", "weights_kernel", "products_kernel"]
    for report in found:
        assert report.stack == 0, report
        assert report.shared <= SHARED[architecture] * 1024, report
