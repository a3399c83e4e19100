"""Objectives that cannot be meant, and what the message says."""

import pytest

from linearard.distill import ObjectiveConfig
from linearard.errors import RecipeError

REFUSED = {
    "unknown relation": ({"relations": {"o": 1.0}}, "names among q, k, v, qk, got 'o'"),
    "misspelt relation": ({"relations": {"kq": 1.0}}, "'kq'. Did you mean"),
    "relations as list": ({"relations": ["q", "k"]}, "a mapping of q, k, v, qk to values"),
    "negative weight": ({"relations": {"q": -1.0}}, "objective.relations.q to be a weight from 0"),
    "weight as text": ({"relations": {"q": "1"}}, "objective.relations.q to be a weight from 0"),
    "weight true": ({"relations": {"q": True}}, "objective.relations.q to be a weight from 0"),
    "infinite weight": ({"lm_weight": float("inf")}, "objective.lm_weight"),
    "weight not a number": ({"logit_weight": float("nan")}, "objective.logit_weight"),
    "nothing at all": ({"relations": {}}, "at least one weight above 0"),
    "all zero": ({"relations": {"q": 0.0}}, "at least one weight above 0"),
    "normalisation": ({"normalisation": "heads"}, "one of own, paper, got 'heads'"),
    "temperature 0": ({"temperature": 0}, "a number from 0.001 to 1000, got 0"),
    "temperature infinite": ({"temperature": float("inf")}, "a number from 0.001 to 1000, got inf"),
    "no positions": ({"logit_positions": 0}, "a whole number from 1 to"),
    "half positions": ({"logit_positions": 0.5}, "a whole number from 1 to"),
    "implementation": (
        {"implementation": "cuda"},
        "reference, chunked, triton, hopper, or null, got 'cuda'",
    ),
    "one layer twice": (
        {"layers": [1, 1]},
        "objective.layers to be a list of at least 1 different values",
    ),
    "no layers": ({"layers": []}, "objective.layers to be a list of at least 1 different values"),
    "layers as number": (
        {"layers": 3},
        "objective.layers to be a list of at least 1 different values",
    ),
    "layers as text": (
        {"layers": ["0"]},
        "objective.layers to be a list of at least 1 different values",
    ),
    "too few weights": (
        {"layers": [0, 1], "layer_weights": [1.0]},
        "as many weights as objective.layers",
    ),
    "negative layer weight": ({"layer_weights": [1.0, -1.0]}, "each a weight from 0"),
    "layer weights as text": ({"layer_weights": ["1"]}, "each a weight from 0"),
    "layer weights zero": ({"layer_weights": [0.0, 0.0]}, "positive sum"),
    "no layer weights": ({"layer_weights": []}, "positive sum"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_message_that_helps(case):
    settings, message = REFUSED[case]
    with pytest.raises(RecipeError) as caught:
        ObjectiveConfig(**settings)
    assert message in str(caught.value)
    assert "objective" in str(caught.value) and caught.value.fix


def test_the_default_is_the_papers_loss():
    config = ObjectiveConfig()
    assert config.active_relations == {"q": 1.0, "k": 1.0, "v": 1.0}
    assert config.temperature == 1.0 and config.needs_teacher and not config.needs_output
    assert config.weights_by_layer(4) == dict.fromkeys(range(4), 0.25)


def test_defaults_are_not_shared():
    ObjectiveConfig().relations["qk"] = 5.0
    assert "qk" not in ObjectiveConfig().relations


def test_weights_by_layer_sum_to_one_and_leave_zeros_out():
    config = ObjectiveConfig(layers=[5, 2, 0], layer_weights=[3.0, 0.0, 1.0])
    assert config.weights_by_layer(6) == {5: 0.75, 0: 0.25}


@pytest.mark.parametrize(
    ("settings", "teacher", "hidden"),
    [
        ({"relations": {"q": 1.0}}, True, False),
        ({"relations": None, "lm_weight": 1.0}, False, True),
        ({"relations": {}, "logit_weight": 1.0}, True, True),
        ({"relations": {"q": 0.0}, "lm_weight": 1.0}, False, True),
    ],
)
def test_what_an_objective_reads(settings, teacher, hidden):
    config = ObjectiveConfig(**settings)
    assert (config.needs_teacher, config.needs_output) == (teacher, hidden)
