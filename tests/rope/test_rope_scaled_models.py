"""Models whose RoPE is scaled already: a stretch counts from before that scaling or from the model as it is.

Expected frequencies are written out here from the papers' definitions, pair by pair, in float64.
"""

import math

import pytest
import torch

import tiny
from linearard.errors import RopeError
from linearard.rope import RopeViews, check_scaling, compute_table, target_window

THETA, WINDOW, DIM = 10000.0, 512, 16
PLAIN = [THETA ** (-2 * i / DIM) for i in range(DIM // 2)]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
#: Scaled models, each with a window of 512 tokens.
MODELS = {
    "llama3": LLAMA3,
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0] * 8,
        "long_factor": [1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 4.0, 4.0],
        "original_max_position_embeddings": 128,
    },
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
}


def scaled(kind):
    native = MODELS[kind] | {"rope_theta": THETA}
    return tiny.tiny_config(
        hidden_size=32,
        num_attention_heads=2,
        max_position_embeddings=WINDOW,
        rope_parameters=native,
    )


def own_frequencies(kind):
    """Of the model at the end of its window."""
    if kind == "llama3":
        return [by_turns(f, 64, 8.0, 1.0, 4.0) for f in PLAIN]
    if kind == "yarn":
        return by_ramp(PLAIN, 128, 4.0)
    factors = {"longrope": MODELS["longrope"]["long_factor"], "linear": [4.0] * 8}
    return [f / by for f, by in zip(PLAIN, factors.get(kind, [1.0] * 8), strict=True)]


def by_turns(frequency, window, factor, low, high):
    """llama3: kept where it turns more than `high` times in the window, slowed below `low`."""
    turns = window * frequency / (2 * math.pi)
    kept = min(max((turns - low) / (high - low), 0.0), 1.0)
    return kept * frequency + (1 - kept) * frequency / factor


def by_ramp(frequencies, window, factor):
    """yarn on frequencies that fall by one factor from pair to pair."""
    ratio = math.log(frequencies[0] / frequencies[1])

    def pair_that_turns(times):
        return math.log(frequencies[0] * window / (2 * math.pi * times)) / ratio

    low, high = max(math.floor(pair_that_turns(32)), 0), math.ceil(pair_that_turns(1))
    found = []
    for pair, frequency in enumerate(frequencies):
        slowed = min(max((pair - low) / (high - low), 0.0), 1.0)
        found.append((1 - slowed) * frequency + slowed * frequency / factor)
    return found


def stretched(kind, scaling):
    config = scaled(kind)
    checked = check_scaling(scaling, config)
    assert target_window(checked, config) == 4 * WINDOW
    assert check_scaling(checked, config) == checked
    return compute_table(checked, config)


def assert_table(table, expected):
    torch.testing.assert_close(
        table.inv_freq.double(), torch.tensor(expected, dtype=torch.float64), rtol=5e-6, atol=0
    )


@pytest.mark.parametrize("kind", MODELS)
def test_linear_over_any_model_divides_its_own_frequencies(kind):
    scaling = {"rope_type": "linear", "factor": 4, "counted_from": "model"}
    assert_table(stretched(kind, scaling), [f / 4 for f in own_frequencies(kind)])


@pytest.mark.parametrize("kind", MODELS)
def test_llama3_over_any_model_counts_turns_in_its_window(kind):
    scaling = LLAMA3 | {"factor": 4, "counted_from": "model"}
    scaling["original_max_position_embeddings"] = WINDOW
    expected = [by_turns(f, WINDOW, 4.0, 1.0, 4.0) for f in own_frequencies(kind)]
    assert_table(stretched(kind, scaling), expected)


@pytest.mark.parametrize("kind", ["linear", "dynamic"])  # those whose frequencies fall evenly
def test_yarn_over_a_model_is_a_ramp_over_its_pairs(kind):
    table = stretched(kind, {"rope_type": "yarn", "factor": 4, "counted_from": "model"})
    assert_table(table, by_ramp(own_frequencies(kind), WINDOW, 4.0))
    assert table.attention_scaling == pytest.approx(0.1 * math.log(4) + 1)


def test_yarn_over_yarn_multiplies_attention_factors_and_slows_slow_pairs_fully():
    table = stretched("yarn", {"rope_type": "yarn", "factor": 4, "counted_from": "model"})
    own = own_frequencies("yarn")
    assert_table(table, [*table.inv_freq[:-2].double().tolist(), own[-2] / 4, own[-1] / 4])
    assert table.inv_freq[0] == pytest.approx(own[0])  # it turns 81 times in the window
    assert table.attention_scaling == pytest.approx((0.1 * math.log(4) + 1) ** 2)


@pytest.mark.parametrize("kind", MODELS)
def test_a_larger_base_over_any_model(kind):
    scaling = {"rope_type": "default", "factor": 4, "rope_theta": 1e6}
    expected = [f * 100 ** (-2 * i / DIM) for i, f in enumerate(own_frequencies(kind))]
    assert_table(stretched(kind, scaling), expected)


def test_longrope_factors_over_longrope():
    factors = [1.0, 1.0, 2.0, 2.0, 3.0, 4.0, 4.0, 4.0]
    scaling = {"rope_type": "longrope", "factor": 4, "long_factor": factors}
    table = stretched("longrope", scaling | {"counted_from": "model"})
    own = own_frequencies("longrope")
    assert_table(table, [f / by for f, by in zip(own, factors, strict=True)])


# A scaling of the model's own type that takes the window of today for the one before it: frequencies would
# turn faster than the model's. (`dynamic` counts from the window of today in any case.)
COUNTED_FROM_TODAY = {
    "llama3": LLAMA3 | {"factor": 2.0, "original_max_position_embeddings": WINDOW},
    "yarn": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": WINDOW},
    "longrope": {
        "rope_type": "longrope",
        "factor": 2.0,
        "long_factor": [1.0, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.0],
        "original_max_position_embeddings": WINDOW,
    },
}


@pytest.mark.parametrize("kind", COUNTED_FROM_TODAY)
def test_a_window_of_today_taken_for_the_original_one_is_refused(kind):
    with pytest.raises(RopeError, match="turn faster") as caught:
        check_scaling(COUNTED_FROM_TODAY[kind], scaled(kind))
    assert "counted_from to model" in caught.value.fix
    check_scaling(COUNTED_FROM_TODAY[kind] | {"counted_from": "model"}, scaled(kind))


@pytest.mark.parametrize("kind", ["llama3", "yarn", "longrope"])
def test_the_models_own_formula_with_a_larger_factor_needs_no_word(kind):
    config = scaled(kind)
    scaling = {k: v for k, v in MODELS[kind].items() if k != "original_max_position_embeddings"}
    scaling["factor"] = 16.0
    if kind == "longrope":
        scaling["long_factor"] = [1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 16.0, 16.0]
    checked = check_scaling(scaling, config)
    original = MODELS[kind]["original_max_position_embeddings"]
    assert checked["original_max_position_embeddings"] == original
    expected = {
        "llama3": lambda: [by_turns(f, 64, 16.0, 1.0, 4.0) for f in PLAIN],
        "yarn": lambda: by_ramp(PLAIN, 128, 16.0),
        "longrope": lambda: [f / by for f, by in zip(PLAIN, checked["long_factor"], strict=True)],
    }[kind]()
    assert_table(compute_table(checked, config), expected)


def test_what_the_models_own_formula_says_is_not_forgotten():
    native = MODELS["yarn"] | {"rope_theta": THETA, "beta_fast": 16.0, "truncate": False}
    config = scaled("yarn")
    config.rope_parameters = native
    checked = check_scaling({"rope_type": "yarn", "factor": 16}, config)
    assert checked["beta_fast"] == 16.0 and checked["truncate"] is False


@pytest.mark.parametrize("kind", MODELS)
def test_live_views_of_scaled_models(kind):
    """The native view stays what it was, and the live module turns by the stretched table."""
    shape = {"hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": WINDOW}
    model, untouched = (
        tiny.tiny_model(**shape, rope_parameters=scaled(kind).rope_parameters) for _ in range(2)
    )
    ids = tiny.tokens(1, 150)
    with torch.no_grad():
        before = untouched(input_ids=ids).logits
        views = RopeViews(model, {"rope_type": "linear", "factor": 4, "counted_from": "model"})
        views.check()
        views.activate("native")
        assert torch.equal(model(input_ids=ids).logits, before)
    assert_table(views.tables("stretched")[""], [f / 4 for f in own_frequencies(kind)])


def test_another_original_window_than_todays_is_refused_over_the_model():
    scaling = LLAMA3 | {"factor": 4, "counted_from": "model"}
    with pytest.raises(RopeError, match="original_max_position_embeddings 512"):
        check_scaling(scaling, scaled("llama3"))


def test_frequencies_that_follow_no_formula_need_a_table():
    """HunYuan's `alpha` stretches `dynamic` frequencies in a way of its own."""
    import transformers

    native = {"rope_type": "dynamic", "rope_theta": THETA, "factor": 1.0, "alpha": 1000.0}
    shape = {k: v for k, v in tiny.tiny_config().to_dict().items() if k in tiny.SHAPE_KEYS}
    config = transformers.HunYuanDenseV1Config(**shape, head_dim=8, rope_parameters=native)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    own = model.model.rotary_emb.inv_freq.tolist()
    if own[-1] == pytest.approx(THETA ** (-6 / 8)):
        pytest.skip("this version of transformers ignores alpha")
    with pytest.raises(RopeError, match="explicit table"):
        RopeViews(model, {"rope_type": "linear", "factor": 4})
    table = {"rope_type": "table", "factor": 4, "inv_freq": [f / 4 for f in own]}
    assert RopeViews(model, table).carried == {"alpha": 1000.0}
