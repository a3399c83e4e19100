"""Which weights are in memory at a time: all pairs once, within the room, in an order of a head's own."""

import importlib.util

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")

BLOCK = 16


@pytest.mark.parametrize("triangle", [True, False])
@pytest.mark.parametrize("window", [None, 40, 300])
@pytest.mark.parametrize(
    ("heads", "share", "tokens", "room"),
    [(6, 1, 333, 10**9), (6, 1, 333, 60_000), (12, 3, 500, 200_000), (1, 1, 2000, 50_000), (5, 1, 70, 100)],
)  # fmt: skip
def test_panels_hold_each_pair_once(heads, share, tokens, room, window, triangle):
    from benchmarks.portable_kernels.panels import panels

    found = panels(heads, share, tokens, BLOCK, triangle, window, room)
    seen = {}
    for panel in found:
        assert all(n % BLOCK == 0 for n in panel[2:])
        assert panel.first_head % share == 0 == panel.heads % share
        assert panel.heads * panel.rows * panel.width <= room or (
            panel.heads == share and panel.rows == BLOCK
        )
        for head in range(panel.first_head, panel.first_head + panel.heads):
            assert seen.get(head, 0) == panel.low  # rows of a head follow each other
            seen[head] = panel.low + panel.rows
        last = panel.low + panel.rows - 1
        first_seen = 0 if window is None else max(0, panel.low - window + 1)
        assert panel.base <= first_seen
        assert panel.base + panel.width > (last if triangle else tokens - 1)
    assert set(seen) == set(range(heads)) and all(end >= tokens for end in seen.values())


def test_rows_of_a_panel_do_not_depend_on_the_number_of_heads():
    from benchmarks.portable_kernels.panels import panels

    def rows(heads):
        return {panel[2:] for panel in panels(heads, 1, 5000, BLOCK, True, None, 10**7)}

    assert rows(1) == rows(7) == rows(400)
    assert len(rows(1)) > 1
