"""Candidate kernels without a GPU: values in the interpreter, and what ptxas makes of them."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
ROOT = Path(__file__).parents[2]


def test_in_the_interpreter():
    file = Path(__file__).with_name("interpreted_designs.py")
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider", file]
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


@pytest.mark.parametrize("design", ["overlapped", "shared_scores"])
def test_compiles_for_hopper_without_spills_or_serialised_products(design, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    triton = pytest.importorskip("triton")
    if tuple(map(int, triton.__version__.split(".")[:2])) != (3, 6):
        pytest.skip("Gluon and ptxas as on the GPU machine: Triton 3.6")
    from benchmarks.designs.triton import offline, overlapped, shared_scores
    from linearard.ops.relation_kl.autograd import Relation
    from linearard.ops.relation_kl.visibility import Visibility

    x, y = (torch.zeros(1, 2, 512, 128, dtype=torch.bfloat16) for _ in range(2))
    relations, visible = [Relation(x, None, y, None)], Visibility(True, None, None, None)
    with offline.compiled() as made:
        if design == "overlapped":
            overlapped.forward(relations, visible, 0.1)
        else:
            rows, stats = torch.zeros(1, 2, 512), torch.zeros(4, 2, 512)
            needs = [(True, False)]
            shared_scores.backward([rows], [stats], relations, visible, 0.1, needs, tma=True)
    (found,) = (offline.report(*each) for each in made)
    assert found["spills"] == 0 and not found["serialised"], found
    assert found["shared"] <= 232448, found
    assert found["loops"], found
