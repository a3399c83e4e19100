"""Planned time: the shipped rates are measured ones, and what they say of measured runs."""

from __future__ import annotations

import dataclasses
import json

import pytest
import transformers

from benchmarks import planner, planner_rates
from benchmarks.training_step import MODELS
from linearard.counting.products import Product
from linearard.counting.shapes import ModelShape
from linearard.counting.step import Step
from linearard.distill import ObjectiveConfig
from linearard.errors import CheckpointError
from linearard.model import AdapterConfig
from linearard.planning import Rates, shipped_rates, stored_rates
from linearard.planning.duration import batch_duration
from linearard.planning.rates import Speed

MEASURED = json.loads(planner_rates.MEASURED.read_text())


def test_shipped_rates_are_those_of_the_result_file():
    # After new results: python -m benchmarks planner_rates
    assert planner_rates.rates() == shipped_rates()


@pytest.mark.parametrize("name", MEASURED["cases"])
def test_measured_runs_are_planned_within_the_margins(name):
    """With today's counts: 10 % of the peak, 15 % of the time, on the machine of the shipped rates."""
    measured = MEASURED["cases"][name]
    plan = planner.planned(planner.CASES[name], shipped_rates(), "cuda")
    assert plan["planned_ms"] == pytest.approx(measured["ms"]["p50"], rel=0.15)
    assert plan["planned_gib"] == pytest.approx(measured["peak_gib"], rel=0.10)


@pytest.mark.parametrize("name", MEASURED["too_large"])
def test_runs_that_ended_out_of_memory_are_called_too_large(name):
    found, (case, limit) = MEASURED["too_large"][name], planner.TOO_LARGE[name]
    assert found["out_of_memory"]
    assert planner.planned(case, shipped_rates(), "cuda")["needed_gib"] > limit


def test_rates_lie_between_measured_shapes():
    rates = dataclasses.replace(
        shipped_rates(),
        relation=(Speed(64, 1000, 1e14, 1e14), Speed(64, 4000, 4e14, 2e14), Speed(96, 2000, 1, 1)),
        windowed=(Speed(64, 1000, 5e13, 5e13),),
    )

    def rate(kind, tokens, windowed=False, phase="student"):
        product = Product(phase, kind, 10**15, 8, 64, tokens, True, 0, windowed)
        return 1e15 / rates.seconds(product)

    assert rate("relation", 2000) == pytest.approx(2e14)
    assert rate("relation", 2000, phase="backward") == pytest.approx(2**0.5 * 1e14)
    assert (rate("relation", 100), rate("relation", 4000)) == pytest.approx((1e14, 4e14))
    assert rate("relation", 10**6) == pytest.approx(4e14)
    assert rate("attention", 2000, windowed=True) == pytest.approx(5e13)
    assert rate("attention", 2000) > 1e14


def test_the_slower_of_device_and_host_counts():
    config = transformers.LlamaConfig(**MODELS["smollm2-135m"])
    shape = ModelShape.of(config, AdapterConfig(r=256, dropout=0.0))
    rates = shipped_rates()

    def duration(tokens, batch, **options):
        step = Step(shape, ObjectiveConfig(), tokens, batch, native_window=8192, fused=True)
        return batch_duration(step, rates, **options)

    small = duration(64, 1)
    assert small.waiting > 0.9 * small.seconds
    assert duration(64, 2).seconds == small.seconds
    recorded = duration(64, 1, graphs=True)
    assert recorded.waiting == 0 and recorded.seconds == pytest.approx(
        small.seconds - small.waiting
    )
    large = duration(8192, 16)
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
