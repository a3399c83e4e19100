"""Counts of launches: every block once, after those that it waits for."""

import pytest

from benchmarks import launches


@pytest.mark.parametrize("blocks", [1, 2, 7, 64])
def test_halves(blocks):
    order = list(launches.halves(3, blocks))
    assert sorted(order) == sorted(launches.ascending(3, blocks))
    for head in range(3):
        own = [block for other, block in order if other == head]
        assert own[: blocks - blocks // 2] == list(range(blocks // 2, blocks))
        assert own[-1] == 0


def test_steps():
    """One block after the other, side by side, and one that waits for the other's adds."""
    many = launches.MULTIPROCESSORS
    assert launches.steps(iter([(0, 4)])) == 2 + 5 + 1
    assert launches.steps((head, 4) for head in range(many + 1)) == 2 * 8
    assert launches.steps(iter([(0, 3), (0, 4)]), 1, 0.5) == 2 + 5 + 1  # a step apart: nobody waits
    assert launches.steps(iter([(0, 4), (0, 3)]), 1, 0.5) == 2 + 2 + 0.5 + 3 + 1
    assert launches.steps(iter([(0, 4), (0, 3)]), 2, 0.5) == 2 + 5 + 1  # chains of their own
    assert launches.steps(iter([(0, 4), (0, 3), (0, 2)]), 2, 1.5) == 2 + 3 + 1.5 + 2 + 1


def test_halves_cost_little_where_ascending_blocks_end_late():
    even = launches.even(32, 32)
    assert launches.steps(launches.ascending(32, 32), 1, 0.5) > 1.14 * even
    assert launches.steps(launches.halves(32, 32), 1, 0.5) < 1.03 * even
