"""Fields under the names of earlier versions: refused in a recipe, understood in a checkpoint."""

import dataclasses

import pytest

from linearard.data import DataConfig
from linearard.distill import ObjectiveConfig
from linearard.errors import RecipeError
from linearard.fields import former_names
from linearard.model import AdapterConfig
from linearard.recipe import PartConfig, RestorationConfig, recipe_from_dict
from linearard.recipe.former_names import with_current_names
from linearard.recipe.recipe import checkpoint_recipe

KINDS = (AdapterConfig, DataConfig, ObjectiveConfig, PartConfig, RestorationConfig)
OLD = {
    "model": {"name": "x"},
    "rope": {"rope_type": "linear", "factor": 2},
    "adapter": {"kind": "direct", "pairs": "fast"},
    "data": {"train": "books", "recall": 0.1},
    "stages": {
        "plain": {"keep": 0.5, "objective": {"lm_weight": 1.0, "recall_weight": 0.5}},
        "mixed": {"parts": {"long": {"data": {"recall": 0.2, "recall_opening": 3.0}}}},
        "none": None,
    },
}
NEW = {
    "model": {"name": "x"},
    "rope": {"rope_type": "linear", "factor": 2},
    "adapter": {"kind": "direct", "rotary_pairs": "fast"},
    "data": {"train": "books", "repeated_passages": 0.1},
    "stages": {
        "plain": {
            "weight_interpolation": 0.5,
            "objective": {"lm_weight": 1.0, "repeated_weight": 0.5},
        },
        "mixed": {"parts": {"long": {"data": {"repeated_passages": 0.2, "repeated_opening": 3.0}}}},
        "none": None,
    },
}


def test_no_field_has_a_name_that_another_had():
    for kind in KINDS:
        names = {item.name for item in dataclasses.fields(kind)}
        assert not names & former_names(kind).keys()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"adapter": {"kind": "direct", "pairs": "fast"}}, "adapter.rotary_pairs"),
        ({"data": {"train": "books", "recall": 0.1}}, "data.repeated_passages"),
        ({"stages": {"a": {"keep": 0.5}}}, "stages.a.weight_interpolation"),
        (
            {"stages": {"a": {"parts": {"b": {"objective": {"recall_weight": 1.0}}}}}},
            "stages.a.parts.b.objective.repeated_weight",
        ),
    ],
)
def test_a_recipe_is_told_the_new_name(change, words):
    with pytest.raises(RecipeError) as error:
        recipe_from_dict(NEW | change)
    assert f"expected {words}, as the field is called now" in str(error.value)
    assert "Rename " in error.value.fix


def test_a_checkpoint_is_read_all_the_same():
    recipe = checkpoint_recipe(OLD, where="a checkpoint")
    assert recipe.source == NEW
    assert recipe.data.repeated_passages == 0.1 and recipe.adapter.rotary_pairs == "fast"
    assert recipe.stages["plain"].fields["weight_interpolation"] == 0.5
    assert recipe.stages["mixed"].parts["long"].data["repeated_opening"] == 3.0


@pytest.mark.parametrize("stages", [[], "x", {"a": 3, "b": {"parts": [1], "objective": "y"}}])
def test_what_is_no_recipe_stays_as_it_is(stages):
    assert with_current_names({"stages": stages, "data": 3}) == {"stages": stages, "data": 3}
