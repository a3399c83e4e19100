"""Frequency tables against formulas written out here in float64, and what `check_scaling` refuses."""

import json
import math

import pytest
import torch

import tiny
from linearard.errors import RopeError
from linearard.rope import check_scaling, compute_table, native_window, target_window

HEAD_DIM, THETA, NATIVE = 64, 10000.0, 4096
LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def config(**changes):
    return tiny.tiny_config(
        hidden_size=128,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=NATIVE,
        **changes,
    )


def plain(theta=THETA, dim=HEAD_DIM):
    return [theta ** (-2 * i / dim) for i in range(dim // 2)]


def linear(factor):
    return [f / factor for f in plain()]


def dynamic(factor):
    # NTK-aware, at a text of factor * NATIVE tokens
    stretch = factor * (factor * NATIVE) / NATIVE - (factor - 1)
    return plain(THETA * stretch ** (HEAD_DIM / (HEAD_DIM - 2)))


def yarn(factor, beta_fast=32.0, beta_slow=1.0, truncate=True):
    # Pair i turns NATIVE / (2 pi theta^(2i/d)) times in the native window. Pairs that turn more often than
    # beta_fast keep their frequency, those that turn less often than beta_slow are interpolated.
    def pair_that_turns(times):
        return HEAD_DIM * math.log(NATIVE / (2 * math.pi * times)) / (2 * math.log(THETA))

    low, high = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, HEAD_DIM - 1)
    table = []
    for i, f in enumerate(plain()):
        interpolated = min(max((i - low) / (high - low), 0.0), 1.0)
        table.append(interpolated * f / factor + (1 - interpolated) * f)
    return table


def llama3(factor, low, high):
    table = []
    for f in plain():
        turns = NATIVE * f / (2 * math.pi)
        if turns > high:
            table.append(f)
        elif turns < low:
            table.append(f / factor)
        else:
            smooth = (turns - low) / (high - low)
            table.append((1 - smooth) * f / factor + smooth * f)
    return table


FACTORS = [1.0 + 0.25 * i for i in range(HEAD_DIM // 2)]
EXPLICIT = [0.9 * 0.74**i for i in range(HEAD_DIM // 2)]
MSCALE = (0.1 * 0.7 * math.log(8) + 1) / (0.1 * 0.3 * math.log(8) + 1)
CASES = {
    "linear": ({"rope_type": "linear", "factor": 8}, linear(8), 1.0),
    "dynamic": ({"rope_type": "dynamic", "factor": 8}, dynamic(8), 1.0),
    "yarn": ({"rope_type": "yarn", "factor": 8}, yarn(8), 0.1 * math.log(8) + 1),
    "yarn, attention factor": (
        {"rope_type": "yarn", "factor": 8, "attention_factor": 1.0},
        yarn(8),
        1.0,
    ),
    "yarn, ramp": (
        {"rope_type": "yarn", "factor": 8, "beta_fast": 16, "beta_slow": 2, "truncate": False},
        yarn(8, 16.0, 2.0, truncate=False),
        0.1 * math.log(8) + 1,
    ),
    "yarn, mscale": (
        {"rope_type": "yarn", "factor": 8, "mscale": 0.7, "mscale_all_dim": 0.3},
        yarn(8),
        MSCALE,
    ),
    "llama3": (LLAMA3, llama3(8, 1.0, 4.0), 1.0),
    "longrope": (
        {"rope_type": "longrope", "factor": 8, "long_factor": FACTORS},
        [f / by for f, by in zip(plain(), FACTORS, strict=True)],
        math.sqrt(1 + math.log(8) / math.log(NATIVE)),
    ),
    "longrope, attention factor": (
        {"rope_type": "longrope", "factor": 8, "long_factor": FACTORS, "attention_factor": 1.5},
        [f / by for f, by in zip(plain(), FACTORS, strict=True)],
        1.5,
    ),
    "table": ({"rope_type": "table", "factor": 8, "inv_freq": EXPLICIT}, EXPLICIT, 1.0),
    "table, attention factor": (
        {"rope_type": "table", "factor": 8, "inv_freq": EXPLICIT, "attention_factor": 1.2},
        EXPLICIT,
        1.2,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_table_is_the_formula(case):
    scaling, expected, attention = CASES[case]
    untouched = config()
    before = untouched.to_dict()
    table = compute_table(check_scaling(scaling, untouched), untouched)
    assert table.inv_freq.dtype == torch.float32
    torch.testing.assert_close(
        table.inv_freq.double(), torch.tensor(expected, dtype=torch.float64), rtol=2e-6, atol=0
    )
    assert table.attention_scaling == pytest.approx(attention, rel=1e-9)
    assert untouched.to_dict() == before


@pytest.mark.parametrize("case", CASES)
def test_checking_twice_changes_nothing(case):
    """Checkpoints carry the checked scaling and check it again when they are loaded."""
    scaling, _, _ = CASES[case]
    once = check_scaling(scaling, config())
    assert check_scaling(once, config()) == once
    assert once == json.loads(json.dumps(once))
    assert target_window(once, config()) == 8 * NATIVE


def test_every_scaling_differs_from_native_and_from_the_others():
    tables = [torch.tensor(c[1], dtype=torch.float64) for c in CASES.values()]
    distinct = {tuple(t.tolist()) for t in tables} | {tuple(plain())}
    assert len(distinct) == 8  # native, linear, dynamic, two yarn ramps, llama3, longrope, table


def test_table_from_a_json_file(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(EXPLICIT))
    scaling = check_scaling({"rope_type": "table", "factor": 2, "inv_freq": str(path)}, config())
    path.unlink()  # the checked scaling holds the numbers, not the place
    expected = torch.tensor(EXPLICIT, dtype=torch.float32)
    assert torch.equal(compute_table(scaling, config()).inv_freq, expected)


@pytest.mark.parametrize("content", ["not json", "{}", "[1, 2, 3]"])
def test_a_bad_json_file_is_refused(tmp_path, content):
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(RopeError, match="inv_freq"):
        check_scaling({"rope_type": "table", "factor": 2, "inv_freq": str(path)}, config())


@pytest.mark.parametrize("kind", ["linear", "yarn", "table"])
def test_an_odd_number_of_rotated_dimensions_is_refused(kind):
    scaling = {"inv_freq": [1.0] * 21} if kind == "table" else {}
    own = {"rope_type": "default", "rope_theta": THETA, "partial_rotary_factor": 0.334}  # 21 of 64
    with pytest.raises(RopeError, match="even number of rotated dimensions"):
        check_scaling({"rope_type": kind, "factor": 4, **scaling}, config(rope_parameters=own))


def test_partial_rotary_models_rotate_a_part():
    half = config(
        rope_parameters={
            "rope_type": "default",
            "rope_theta": THETA,
            "partial_rotary_factor": 0.5,
        }
    )
    scaling = check_scaling({"rope_type": "linear", "factor": 4}, half)
    table = compute_table(scaling, half)
    expected = torch.tensor([f / 4 for f in plain(dim=HEAD_DIM // 2)], dtype=torch.float64)
    torch.testing.assert_close(table.inv_freq.double(), expected, rtol=2e-6, atol=0)


def test_a_larger_base_alone_is_a_scaling():
    scaling = check_scaling({"rope_type": "default", "factor": 8, "rope_theta": 5e5}, config())
    table = compute_table(scaling, config())
    expected = torch.tensor(plain(5e5), dtype=torch.float64)
    torch.testing.assert_close(table.inv_freq.double(), expected, rtol=2e-6, atol=0)
    assert table.attention_scaling == 1.0 and target_window(scaling, config()) == 8 * NATIVE
    assert check_scaling(scaling, config()) == scaling


def test_another_base_is_a_stretch_of_its_own():
    scaling = check_scaling({"rope_type": "linear", "factor": 2, "rope_theta": 5e5}, config())
    expected = torch.tensor([f / 2 for f in plain(5e5)], dtype=torch.float64)
    table = compute_table(scaling, config())
    torch.testing.assert_close(table.inv_freq.double(), expected, rtol=2e-6, atol=0)


def test_the_older_name_of_rope_type():
    assert check_scaling({"type": "linear", "factor": 2}, config())["rope_type"] == "linear"


# What check_scaling refuses: (scaling, what the message says).
REFUSED = {
    "no type": ({"factor": 2}, "one of linear, dynamic, yarn"),
    "unknown type": ({"rope_type": "yarm", "factor": 2}, "'yarm'"),
    "a list as type": ({"rope_type": ["yarn"], "factor": 2}, "one of linear"),
    "misspelt key": ({"rope_type": "yarn", "fcator": 2}, "Did you mean 'factor'"),
    "misspelt optional": (
        {"rope_type": "yarn", "factor": 2, "attention_facter": 1},
        "Did you mean 'attention_factor'",
    ),
    "another type's key": (
        {"rope_type": "linear", "factor": 2, "beta_fast": 32},
        "'beta_fast'. Remove it",
    ),
    "missing factor": ({"rope_type": "linear"}, "no factor"),
    "missing llama3 keys": (
        {"rope_type": "llama3", "factor": 2},
        "no high_freq_factor, low_freq_factor",
    ),
    "factor 1": ({"rope_type": "linear", "factor": 1}, "above 1, got 1"),
    "factor below 1": ({"rope_type": "linear", "factor": 0.5}, "above 1, got 0.5"),
    "factor true": ({"rope_type": "linear", "factor": True}, "above 1, got True"),
    "factor text": ({"rope_type": "linear", "factor": "8"}, "above 1, got '8'"),
    "factor infinite": ({"rope_type": "linear", "factor": math.inf}, "above 1, got inf"),
    "factor not a number": ({"rope_type": "linear", "factor": math.nan}, "above 1, got nan"),
    "text as number": (
        {"rope_type": "yarn", "factor": 2, "beta_fast": "32"},
        "beta_fast to be a number from 1e-06 to 1000000000, got '32'",
    ),
    "negative attention factor": (
        {"rope_type": "yarn", "factor": 2, "attention_factor": -1},
        "attention_factor to be a number above 0, at most 1000",
    ),
    "truncate as number": (
        {"rope_type": "yarn", "factor": 2, "truncate": 1},
        "truncate to be true or false",
    ),
    "theta": ({"rope_type": "linear", "factor": 2, "rope_theta": 0}, "rope_theta"),
    "llama3 ends swapped": (
        LLAMA3 | {"low_freq_factor": 4.0, "high_freq_factor": 1.0},
        "low_freq_factor below high_freq_factor",
    ),
    "short list": (
        {"rope_type": "longrope", "factor": 2, "long_factor": [1.0] * 31},
        "list of 32 positive numbers (rotary_dim / 2), got 31 values",
    ),
    "no list": (
        {"rope_type": "longrope", "factor": 2, "long_factor": 3.0},
        "long_factor to be a list of 32 positive numbers (rotary_dim / 2), got float",
    ),
    "a zero in the table": (
        {"rope_type": "table", "factor": 2, "inv_freq": [1.0] * 31 + [0.0]},
        "inv_freq to be a list of 32 positive numbers",
    ),
    "one frequency faster": (
        {"rope_type": "table", "factor": 2, "inv_freq": [*plain()[:31], 1.1 * plain()[31]]},
        "pair 31 would turn 1.1 times as fast",
    ),
    "a factor below 1": (
        {"rope_type": "longrope", "factor": 2, "long_factor": [0.5, *[2.0] * 31]},
        "pair 0 would turn 2 times as fast",
    ),
    "a smaller base": (
        {"rope_type": "linear", "factor": 2, "rope_theta": 100.0},
        "turn faster than in the model",
    ),
    "a smaller base alone": (
        {"rope_type": "default", "factor": 2, "rope_theta": 9000.0},
        "turn faster than in the model",
    ),
    "the same base": (
        {"rope_type": "default", "factor": 2, "rope_theta": THETA},
        "the same table twice",
    ),
    "no base": ({"rope_type": "default", "factor": 2}, "no rope_theta"),
    "factors in reverse": (
        {"rope_type": "longrope", "factor": 8, "long_factor": FACTORS[::-1]},
        "slows the slowest rotary pairs the most",
    ),
    "pairs out of order": (
        {
            "rope_type": "table",
            "factor": 8,
            "inv_freq": [*EXPLICIT[:5], 0.02, *EXPLICIT[6:]],
        },
        "pair 6 faster than the one before it",
    ),
    "betas in reverse": (
        {"rope_type": "yarn", "factor": 8, "beta_fast": 1, "beta_slow": 32},
        "beta_slow below beta_fast",
    ),
    "one beta beyond the other's default": (
        {"rope_type": "yarn", "factor": 8, "beta_slow": 33},
        "beta_slow below beta_fast",
    ),
    "two types": ({"type": "yarn", "rope_type": "linear", "factor": 8}, "and type 'yarn'"),
    "counted from nowhere": (
        {"rope_type": "linear", "factor": 8, "counted_from": "today"},
        "rope.counted_from to be one of model, original",
    ),
    "no such file": (
        {"rope_type": "table", "factor": 2, "inv_freq": "no/such.json"},
        "'no/such.json'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_message_that_helps(case):
    scaling, message = REFUSED[case]
    with pytest.raises(RopeError) as caught:
        check_scaling(scaling, config())
    assert message in str(caught.value)
    assert caught.value.fix.endswith((".", "?"))


def test_a_native_scaling_is_not_discarded():
    native = {**LLAMA3, "rope_theta": THETA, "original_max_position_embeddings": 512}
    scaled = config(rope_parameters=native)
    with pytest.raises(RopeError, match="would discard the model's 'llama3' scaling"):
        check_scaling({"rope_type": "linear", "factor": 16, "counted_from": "original"}, scaled)
    # the same type with a larger factor, or a table that says everything, are explicit enough
    same = check_scaling({**LLAMA3, "factor": 16}, scaled)
    assert same["original_max_position_embeddings"] == 512  # the model's own, not its window
    assert target_window(same, scaled) == 16 * 512
    slow = [f / 9 for f in plain()]
    check_scaling({"rope_type": "table", "factor": 2, "inv_freq": slow}, scaled)


def test_a_factor_that_does_not_reach_beyond_the_native_window_is_refused():
    native = {**LLAMA3, "rope_theta": THETA, "original_max_position_embeddings": 512}
    with pytest.raises(RopeError, match="beyond the model's window of 4096 tokens"):
        check_scaling({**LLAMA3, "factor": 8}, config(rope_parameters=native))


def test_linear_on_linear_counts_from_the_window_before_both():
    native = config(rope_parameters={"rope_type": "linear", "rope_theta": THETA, "factor": 2.0})
    scaling = check_scaling({"rope_type": "linear", "factor": 8}, native)
    expected = torch.tensor(linear(8), dtype=torch.float64)
    table = compute_table(scaling, native)
    torch.testing.assert_close(table.inv_freq.double(), expected, rtol=2e-6, atol=0)
    assert native_window(native, scaling) == NATIVE
    assert target_window(scaling, native) == 4 * NATIVE
    with pytest.raises(RopeError, match="beyond the model's window"):
        check_scaling({"rope_type": "linear", "factor": 2}, native)


def test_a_model_without_rope_is_refused():
    from transformers import GPT2Config

    with pytest.raises(RopeError, match="'gpt2'"):
        check_scaling({"rope_type": "linear", "factor": 2}, GPT2Config())


def test_the_full_attention_entry_counts_where_layer_types_differ():
    gemma = tiny.tiny_config("gemma3")
    scaling = check_scaling({"rope_type": "linear", "factor": 4}, gemma)
    assert scaling["rope_theta"] == gemma.rope_parameters["full_attention"]["rope_theta"]
    assert scaling["rope_theta"] != gemma.rope_parameters["sliding_attention"]["rope_theta"]


def test_longrope_has_one_table_for_short_and_long_text():
    scaling = {"rope_type": "longrope", "factor": 8, "long_factor": FACTORS, "short_factor": [1.0]}
    assert check_scaling(scaling, config())["short_factor"] == FACTORS
