import math

import pytest
import torch

from linearard.evaluation.statistics import bootstrap_interval, mean, perplexity


def test_the_interval_is_that_of_the_mean():
    sample = torch.randn(400, generator=torch.Generator().manual_seed(0)).double() + 3
    low, high = bootstrap_interval(sample.tolist(), seed=0)
    error = (sample.std() / 400**0.5).item()
    assert low == pytest.approx(sample.mean().item() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(sample.mean().item() + 1.96 * error, abs=0.3 * error)
    assert bootstrap_interval(sample.tolist(), seed=0) == [low, high]
    assert bootstrap_interval(sample.tolist(), seed=1) != [low, high]


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 1.0], [1.0, math.nan], [1.0, math.inf]])
def test_no_interval_where_resampling_says_nothing(values):
    assert bootstrap_interval(values, seed=0) is None


def test_overflow_and_nan_are_numbers_too():
    assert perplexity(0.0) == 1 and perplexity(800.0) == math.inf
    assert math.isnan(perplexity(math.nan)) and math.isnan(mean([1.0, math.nan]))
