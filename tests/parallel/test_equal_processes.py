"""Two processes compute what one does: with copies (DDP), with shares of weights or of windows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import small_run
from parallel.steps import CASES

#: Float32 sums in another order. AdamW's first steps are as long as its rate whatever the gradient, so that
#: rounding shows most in weights whose gradient is near zero.
CLOSE = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with all that `work.py` does."""
    folder = tmp_path_factory.mktemp("parallel")
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("work.py")), str(folder)],
        env=small_run.environment() | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        check=True,
        timeout=840,
    )
    return folder


@pytest.fixture(scope="module")
def steps(done):
    """By case: what two processes found, and what one did."""
    two, one = (torch.load(done / f"{name}.pt") for name in ("two", "one"))
    return dict(zip(CASES, zip(two, one, strict=True), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.objective}-{c.kind}-{c.engine}")
def test_terms_gradients_weights_and_teacher(case, steps):
    two, one = steps[case]
    torch.testing.assert_close(two["terms"], one["terms"], **CLOSE)
    torch.testing.assert_close(two["teacher"], one["teacher"], **CLOSE)
    for ours, alone in zip(two["gradients"], one["gradients"], strict=True):
        if alone is None:  # DistributedDataParallel and FSDP2 may say zero instead
            assert ours is None or not ours.any()
        else:
            torch.testing.assert_close(ours, alone, **CLOSE)
    for ours, alone in zip(two["weights"], one["weights"], strict=True):
        torch.testing.assert_close(ours, alone, **CLOSE)


def test_the_comparison_can_fail(steps):
    """Weights have moved by a hundred times the tolerance, and gradients are far above it."""
    for case, (_, one) in steps.items():
        assert any(g is not None and g.abs().max() > 1e-3 for g in one["gradients"]), case


RUNS = [
    ("direct-ddp", "direct-one"),
    ("direct-fsdp", "direct-one"),
    ("lora-fsdp", "lora-one"),
    ("sequence", "alone"),
    ("two-to-one", "direct-one"),
    ("one-to-two", "alone"),
    ("one-to-shares", "plain"),
]


@pytest.mark.parametrize(("several", "one"), RUNS)
def test_runs_end_in_the_same_weights(several, one, done):
    stages = sorted(path.name for path in (done / one / "run").glob("stage*"))
    assert len(stages) == 2
    for stage in stages:
        found, expected = (small_run.losses(done / name / "run", stage) for name in (several, one))
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), **CLOSE)
    found, expected = (small_run.final_weights(done / name / "run") for name in (several, one))
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], **CLOSE)


def test_a_divided_model_is_measured_by_all_processes(done):
    found, expected = (
        json.loads((done / name / "run/evaluation.json").read_text())["views"]
        for name in ("direct-fsdp", "direct-one")
    )
    for view in ("original", "stretched", "restored"):
        for ours, alone in zip(*map(_numbers, (found[view], expected[view])), strict=True):
            assert ours == pytest.approx(alone, rel=1e-4, abs=1e-5), view


def test_checkpoints_hold_every_share(done):
    """The files of a run by shares have the names and shapes of one by a single process."""
    for step in (2, 4):
        folders = [
            done / name / f"run/stage2-restoration/checkpoint-{step}"
            for name in ("direct-fsdp", "direct-one")
        ]
        ours, alone = (torch.load(folder / "optimizer.pt")["state"] for folder in folders)
        assert ours.keys() == alone.keys()
        for number in alone:
            for name, value in alone[number].items():
                torch.testing.assert_close(ours[number][name], value, rtol=0, atol=1e-3)


def _numbers(tree):
    if isinstance(tree, dict):
        return [n for key in sorted(tree) if "seconds" not in key for n in _numbers(tree[key])]
    if isinstance(tree, list):
        return [n for item in tree for n in _numbers(item)]
    return [tree] if isinstance(tree, int | float) else []
