"""A scaling may state the window the model was trained on, where its configuration promises more."""

import pytest
import torch

import tiny
from linearard.errors import RopeError
from linearard.export.configuration import exported_rope
from linearard.rope import RopeViews, check_scaling, compute_table, native_window, target_window

WINDOW_KEY = "original_max_position_embeddings"
LONG = [1.0, 2.0, 3.0, 4.0]
SCALINGS = {
    "linear": {},
    "dynamic": {},
    "yarn": {},
    "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {"long_factor": LONG},
    "table": {"inv_freq": [0.9, 0.08, 0.007, 0.0005]},
}


def config(window=512):
    return tiny.tiny_config(max_position_embeddings=window)


@pytest.mark.parametrize("kind", SCALINGS)
def test_every_scaling_counts_from_the_stated_window(kind):
    """Stating 64 in a configuration of 512 gives the windows and the table of a configuration of 64."""
    stated = {"rope_type": kind, "factor": 4, WINDOW_KEY: 64} | SCALINGS[kind]
    plain = {"rope_type": kind, "factor": 4} | SCALINGS[kind]
    promising, honest = config(512), config(64)
    checked = check_scaling(stated, promising)
    assert native_window(promising, checked) == 64
    assert target_window(checked, promising) == 256
    table = compute_table(checked, promising)
    assert table.same_as(compute_table(check_scaling(plain, honest), honest))
    assert promising.max_position_embeddings == 512  # the configuration itself is untouched


def test_without_the_key_the_configuration_is_believed():
    checked = check_scaling({"rope_type": "linear", "factor": 4}, config(512))
    assert native_window(config(512), checked) == 512
    assert target_window(checked, config(512)) == 2048


def test_mistral_from_8k_to_32k():
    """The paper's claim for a model whose configuration says 32768 and whose training held 8192."""
    mistral = tiny.tiny_config("mistral", max_position_embeddings=32768)
    scaling = check_scaling({"rope_type": "linear", "factor": 4, WINDOW_KEY: 8192}, mistral)
    assert native_window(mistral, scaling) == 8192
    assert target_window(scaling, mistral) == 32768


def test_a_formula_parameter_does_not_shrink_a_model_that_is_scaled_already():
    """Llama 3.1 was trained at 131072 with llama3 RoPE whose formula counts from 8192."""
    own = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        WINDOW_KEY: 8192,
    }
    llama31 = tiny.tiny_config(max_position_embeddings=131072, rope_parameters=own)
    scaling = check_scaling(own | {"factor": 32}, llama31)
    assert native_window(llama31, scaling) == 131072
    assert target_window(scaling, llama31) == 262144


@pytest.mark.parametrize("value", [0, -8, 1, 513, 64.0, "64", True, None])
def test_a_window_that_cannot_be_is_refused(value):
    with pytest.raises(RopeError, match="from 2 to 512, the model's max_position_embeddings"):
        check_scaling({"rope_type": "linear", "factor": 4, WINDOW_KEY: value}, config(512))


def test_a_misspelt_key_is_named():
    with pytest.raises(RopeError, match=f"Did you mean '{WINDOW_KEY}'"):
        check_scaling(
            {"rope_type": "linear", "factor": 4, "original_max_position_embedding": 64}, config()
        )


def test_views_know_both_windows_and_the_export_stays_readable():
    """transformers warns of keys its linear RoPE does not know, so the export leaves ours out."""
    model = tiny.tiny_model(max_position_embeddings=512)
    views = RopeViews(model, {"rope_type": "linear", "factor": 4, WINDOW_KEY: 64})
    assert (views.native_window, views.target_window) == (64, 256)
    exported = exported_rope(views)
    assert exported["rope_type"] == "linear" and exported["factor"] == 4
    assert WINDOW_KEY not in exported
    assert views.scaling[WINDOW_KEY] == 64  # the checkpoint keeps it
    with torch.no_grad():
        assert torch.isfinite(model(tiny.tokens(1, 17)).logits).all()
