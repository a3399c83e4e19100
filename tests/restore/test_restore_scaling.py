"""Models whose RoPE is scaled already are stretched as they are, whatever the rule chooses."""

from types import SimpleNamespace

import pytest

import tiny
from linearard.restore.scaling import choose_scaling
from linearard.rope import check_scaling, target_window

MODELS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "llama3": tiny.SCALINGS["llama3"] | {"factor": 8.0, "original_max_position_embeddings": 16},
}


@pytest.mark.parametrize("family", ["yarn", "linear"])
@pytest.mark.parametrize("kind", MODELS)
def test_the_chosen_scaling_stretches_the_model_as_it_is(kind, family):
    native = MODELS[kind] | {"rope_theta": 10000.0}
    config = tiny.tiny_config(max_position_embeddings=128, rope_parameters=native)
    facts = SimpleNamespace(config=config, native=128, factor=4.0)
    rope, choice = choose_scaling(facts, family, native_asked=False)
    checked = check_scaling(rope, config)  # which refuses a frequency that turns faster
    assert target_window(checked, config) == (640 if family == "yarn" else 512)
    assert ("as it is" in choice.reason) == (kind != "default" and family == "yarn")
