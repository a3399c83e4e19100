"""The window that an export says is the one that was trained for."""

import pytest

from linearard.recipe import load_recipe, recipe_from_dict, trained_window


def recipe(stages):
    return recipe_from_dict(
        {
            "model": {"name": "x"},
            "rope": {"rope_type": "yarn", "factor": 10},
            "data": {"train": "x.txt"},
            "stages": stages,
        }
    )


def test_a_factor_above_the_longest_window_is_not_said():
    found = load_recipe("smollm2-135m-64k")
    assert found.rope["factor"] * 8192 == 81920
    assert trained_window(found, 8192, 81920) == 65536


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ({"a": {"window": 512}}, 81920),  # restored on short text alone, for its target
        ({"a": {"window": 512}, "b": {"window": 20000}}, 20000),
        ({"a": {"window": 200_000}}, 81920),
        ({"a": {}}, 81920),
        (
            {"a": {"window": 9000, "objective": {"relations": {"qk": 1}, "skip_positions": True}}},
            81920,
        ),
    ],
)
def test_longest_window_beyond_the_native_one(stages, expected):
    assert trained_window(recipe(stages), 8192, 81920) == expected
