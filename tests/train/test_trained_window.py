"""The window that an export says is the one that was trained for, and RULER is asked up to it."""

import pytest
import torch
from transformers import LlamaConfig

from linearard.errors import RecipeError
from linearard.recipe import load_recipe, recipe_from_dict, trained_window, with_ruler_lengths
from linearard.train.stages import stage_arguments


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


def test_a_window_that_the_recipe_names_is_said():
    lm = {"relations": {}, "lm_weight": 1}
    stages = {"a": {"window": 512}, "b": {"window": 20000, "objective": lm}}
    source = recipe(stages).source
    named = recipe_from_dict(source | {"target_window": 40_000})
    assert trained_window(named, 8192, 81920) == 40_000
    config = LlamaConfig(max_position_embeddings=8192, rope_theta=1e4)
    options = (config, torch.device("cpu"), torch.float32, False)
    assert stage_arguments(named, *options).keys() == {"a", "b"}
    beyond = recipe_from_dict(source | {"target_window": 81_921})
    with pytest.raises(RecipeError, match="target_window of at most 81920 tokens, factor times"):
        stage_arguments(beyond, *options)


@pytest.mark.parametrize(
    ("window", "asked", "expected"),
    [
        (512, {}, [4096, 16384, 65536, 81920]),
        (20_000, {}, [4096, 16384, 20_000]),
        (16_384, {}, [4096, 16384]),
        (20_000, {"ruler_lengths": [8192]}, [8192]),
    ],
)
def test_ruler_is_asked_up_to_it(window, asked, expected):
    plain = recipe({"a": {"window": window}})
    config = LlamaConfig(max_position_embeddings=8192, rope_theta=1e4)
    assert with_ruler_lengths(plain, config) is plain  # nothing is measured
    source = plain.source | {"evaluation": {"lm_eval": ["ruler"], **asked}}
    found = with_ruler_lengths(recipe_from_dict(source), config)
    assert found.evaluation.ruler_lengths == expected and found.stages.keys() == {"a"}


def test_a_short_window_is_asked_alone():
    source = recipe({"a": {"window": 64}}).source | {"evaluation": {"lm_eval": ["ruler"]}}
    source["rope"] = {"rope_type": "linear", "factor": 4}
    config = LlamaConfig(max_position_embeddings=512, rope_theta=1e4)
    assert with_ruler_lengths(recipe_from_dict(source), config).evaluation.ruler_lengths == [2048]
