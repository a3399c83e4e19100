"""RoPE scalings that cannot be meant, from the command line: one line, before anything is read."""

import pytest

_FOUR = "[1.0, 0.1, 0.01, 0.001]"
FACTORS = ["0", "1", "1.0", "-4", "0.5", ".nan", ".inf", "-.inf", "1e10", "1e30", "1e308", "true"]
FACTORS += ["null", "'8'", "[4]", "{a: 4}", f"1{'0' * 400}", "9" * 5000, f"{2**62}"]
LONG_FACTORS = ["null", "4", "[]", "[1]", "[1,2,3]", "[1,2,3,4,5]", "[1,2,3,0]", "[1,2,3,-4]"]
LONG_FACTORS += ["[1,2,3,.nan]", "[1,2,3,x]", "[[1,2,3,4]]", "/nowhere.json", "[1,2,3,true]"]
TABLES = [
    "null",
    "4",
    "[]",
    "[1]",
    "[1,.1,.01,0]",
    "[1,.1,.01,-1]",
    "[1,.1,.01,.nan]",
    "base",
    "''",
]
TABLES += ["[1,.1,.01,.inf]", "/nowhere.json", "/dev/zero", "recipe.yaml", "base/config.json"]
TABLES += ["a" * 300, "~nobody-there/x", "base/model.safetensors", "[2, 0.1, 0.01, 0.001]"]
SCALINGS = [
    "{}",
    "[linear]",
    "{factor: 4}",
    "{rope_type: linear}",
    "{rope_type: null, factor: 4}",
    "{rope_type: 3, factor: 4}",
    "{rope_type: [linear], factor: 4}",
    "{rope_type: lineer, factor: 4}",
    "{rope_type: proportional, factor: 4}",
    *(f"{{rope_type: linear, factor: {factor}}}" for factor in FACTORS),
    "{rope_type: linear, factor: 4, 3: 4}",
    "{rope_type: linear, factor: 4, null: 4}",
    "{rope_type: linear, factor: 4, beta_fast: 32}",
    "{rope_type: linear, factor: 4, '': 4}",
    *(
        f"{{rope_type: yarn, factor: 4, {key}: {value}}}"
        for key, wrong in {
            "rope_theta": "0 1 1.0 -1 .nan 1e16 18446744073709551616 x [1]",
            "beta_fast": "0 -1 .nan .inf 1e-300 x true",
            "beta_slow": "0 -1 .nan 32 64 1e-300 x",
            "attention_factor": "0 -1 .nan 1e6 x true",
            "mscale": "0 -1 1e9 x",
            "truncate": "1 0 x 'no' null",
            "partial_rotary_factor": "0 -1 2 1e9 .nan 9223372036854775807 x",
            "original_max_position_embeddings": "0 1 -64 65 64.0 .nan x true",
        }.items()
        for value in wrong.split()
    ),
    "{rope_type: yarn, factor: 4, beta_fast: 1, beta_slow: 32}",
    "{rope_type: llama3, factor: 4}",
    "{rope_type: llama3, factor: 4, low_freq_factor: 1}",
    "{rope_type: llama3, factor: 4, low_freq_factor: 4, high_freq_factor: 1}",
    "{rope_type: llama3, factor: 4, low_freq_factor: 0, high_freq_factor: 4}",
    "{rope_type: llama3, factor: 4, low_freq_factor: 1, high_freq_factor: .nan}",
    *(f"{{rope_type: longrope, factor: 4, long_factor: {factors}}}" for factors in LONG_FACTORS),
    *(f"{{rope_type: table, factor: 4, inv_freq: {table}}}" for table in TABLES),
    f"{{rope_type: table, inv_freq: {_FOUR}}}",
    f"{{rope_type: table, factor: 4, inv_freq: {_FOUR}, attention_factor: 0}}",
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda text: text[:60])
def test_scalings(scaling, refused):
    refused("train", "recipe.yaml", f"--rope={scaling}")


def test_they_are_distinct():
    assert len(set(SCALINGS)) == len(SCALINGS) > 100


@pytest.mark.parametrize("name", ["lm_head", "*", "*_head", "embed_tokens", "nothing", "model", ""])
def test_targets_that_are_no_layers(name, refused):
    """Refused by the model's own layers, before its weights are read."""
    refused("train", "recipe.yaml", f"--adapter.target_modules=['{name}']")
