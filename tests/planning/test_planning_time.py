"""Planned time: the shipped rates are those of the result files, and what they say of measured steps."""

from __future__ import annotations

import dataclasses
import json

import pytest

from benchmarks import planner_rates
from benchmarks.training_step import CASES
from linearard.counting.products import Product
from linearard.distill import ObjectiveConfig
from linearard.errors import CheckpointError
from linearard.planning import Rates, shipped_rates, stored_rates
from linearard.planning.duration import batch_duration, optimizer_seconds


def result(name):
    return json.loads((planner_rates.RESULTS / name).read_text())


def test_shipped_rates_are_those_of_the_result_files():
    # After new results: python -m benchmarks planner_rates
    assert planner_rates.rates() == shipped_rates()


def test_steps_measured_before_layers_were_fused():
    """Of the runs behind the rates, with the attention kernels they had: kernels are all but a tenth."""
    measured = result("training_step_llama2_7b.json")
    flash = planner_rates.speeds(result("relation_kl.json"), "flash_forward", "flash", 5)
    rates = dataclasses.replace(shipped_rates(), attention=flash)
    shape = planner_rates.model_shape(measured)
    for name, case in measured["cases"].items():
        planned = batch_duration(
            shape,
            ObjectiveConfig(**CASES[name]),
            measured["tokens"],
            measured["batch"],
            rates,
            native_window=4096,
            fused=False,
        )
        seconds = planned.seconds + optimizer_seconds(shape, rates)
        assert 1000 * seconds == pytest.approx(case["ms"]["p50"], rel=0.15), name


def test_the_slower_of_device_and_host_counts():
    shape = planner_rates.model_shape(result("training_step_smollm2.json"))
    objective, rates = ObjectiveConfig(), shipped_rates()
    how = {"native_window": 8192, "fused": True}
    small = batch_duration(shape, objective, 64, 1, rates, **how)
    assert small.waiting > 0.9 * small.seconds
    assert batch_duration(shape, objective, 64, 2, rates, **how).seconds == small.seconds
    recorded = batch_duration(shape, objective, 64, 1, rates, **how, graphs=True)
    assert recorded.waiting == 0 and recorded.seconds == pytest.approx(
        small.seconds - small.waiting
    )
    large = batch_duration(shape, objective, 8192, 16, rates, **how)
    assert large.waiting == 0
    assert sum(large.parts.values()) == pytest.approx(large.seconds)


def test_small_products_are_slower():
    rates = shipped_rates()
    wide, narrow = (
        Product("student", "gemm", 2 * 512 * 4096 * side, 512, 4096, side, True, 0)
        for side in (512, 64)
    )
    assert rates.seconds(narrow) > rates.seconds(wide) / 8
    attention = Product("student", "attention", 10**12, 8, 128, 4096, True, 0)
    measured = next(s for s in rates.attention if (s.head_dim, s.tokens) == (128, 4096))
    assert rates.seconds(attention) == 10**12 / measured.forward


def test_broken_rates_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "linearard" / "rates" / "nvidia-h200.json"
    assert stored_rates("NVIDIA H200") is None
    file.parent.mkdir(parents=True)
    for text in ("{", "{}", json.dumps(shipped_rates().to_dict() | {"format": 0})):
        file.write_text(text)
        with pytest.raises(CheckpointError, match="--calibrate"):
            stored_rates("NVIDIA H200")
    with pytest.raises(CheckpointError):
        Rates.from_dict(shipped_rates().to_dict() | {"more": 1})
