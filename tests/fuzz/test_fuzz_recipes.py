"""Random recipes: refused in words, or good; never a traceback, never without an end."""

import dataclasses
import json

import pytest

hypothesis = pytest.importorskip("hypothesis")
import torch  # noqa: E402
import yaml  # noqa: E402
from fuzzing import damaged, numbers, refused_or_done, texts, tries, values  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import tiny  # noqa: E402
from linearard.cli.main import _split  # noqa: E402
from linearard.data import DataConfig  # noqa: E402
from linearard.distill import ObjectiveConfig  # noqa: E402
from linearard.evaluation import EvaluationConfig  # noqa: E402
from linearard.model import AdapterConfig, ModelConfig  # noqa: E402
from linearard.recipe import PartConfig, RestorationConfig, recipe_from_dict  # noqa: E402
from linearard.recipe.held_out import HeldOutConfig  # noqa: E402
from linearard.recipe.yaml_text import parse_yaml  # noqa: E402
from linearard.rope import check_scaling, compute_table  # noqa: E402
from linearard.train.stages import stage_arguments  # noqa: E402

RECIPE = {
    "model": {"name": "x", "dtype": "float32", "device": "cpu"},
    "rope": {"rope_type": "linear", "factor": 4},
    "adapter": {"r": 4, "alpha": 8},
    "data": {"train": "text", "validation": "held-out"},
    "stages": {"one": {"window": 48, "sequences": 4}},
    "evaluation": {"perplexity_windows": [48]},
    "output_dir": "run",
    "seed": 0,
}
SECTIONS = {
    "model": ModelConfig,
    "adapter": AdapterConfig,
    "data": DataConfig,
    "stages.one": RestorationConfig,
    "stages.one.objective": ObjectiveConfig,
    "stages.one.held_out": HeldOutConfig,
    "stages.one.data": DataConfig,
    "stages.one.parts.a": PartConfig,
    "stages.one.parts.a.objective": ObjectiveConfig,
    "evaluation": EvaluationConfig,
}
ROPE = ["rope_type", "factor", "rope_theta", "beta_fast", "beta_slow", "attention_factor", "mscale"]
ROPE += ["low_freq_factor", "high_freq_factor", "long_factor", "short_factor", "inv_freq"]
ROPE += ["partial_rotary_factor", "original_max_position_embeddings", "truncate", "type"]
TYPES = ["linear", "dynamic", "yarn", "llama3", "longrope", "table", "default", "proportional"]
names = st.one_of(
    st.sampled_from(
        [f"{s}.{item.name}" for s, kind in SECTIONS.items() for item in dataclasses.fields(kind)]
        + [f"rope.{key}" for key in ROPE]
        + [*RECIPE, *SECTIONS, "stages.two", "stages.one.parts"]
    ),
    texts,
)


def put(recipe, name, value):
    *parents, last = name.split(".")
    for key in parents:
        if not isinstance(recipe, dict):
            return
        recipe = recipe.setdefault(key, {})
    if isinstance(recipe, dict):
        recipe[last] = value


def check(source):
    """All that is checked before a file is read: sections, evaluation, RoPE and stages."""
    recipe = recipe_from_dict(source)
    config = tiny.tiny_config()
    return stage_arguments(recipe, config, torch.device("cpu"), torch.float32, False)


@given(st.lists(st.tuples(names, values), min_size=1, max_size=4))
@tries(250)
def test_recipes(changes):
    recipe = json.loads(json.dumps(RECIPE))
    for name, value in changes:
        put(recipe, name, value)
    refused_or_done(check, recipe)


def test_the_recipe_itself_is_good():
    assert list(check(RECIPE)) == ["one"]


@given(damaged(yaml.safe_dump(RECIPE, sort_keys=False).encode()))
@tries(150)
def test_text_of_a_recipe(data):
    text = data.decode(errors="surrogateescape")
    source = refused_or_done(parse_yaml, text, "the file")
    if isinstance(source, dict):
        refused_or_done(recipe_from_dict, source)


@given(st.text(alphabet=st.sampled_from("{}[]:,&*!|>-?#'\"\\ \n\tab10.e_<~=%@`"), max_size=60))
@tries(300)
def test_text_of_signs(text):
    refused_or_done(parse_yaml, text, "the file")


rope_numbers = st.one_of(numbers, st.floats(0.01, 1e6), st.integers(1, 64))
ropes = st.dictionaries(
    st.sampled_from(ROPE),
    st.one_of(rope_numbers, st.lists(rope_numbers, max_size=5), st.booleans(), texts),
    max_size=6,
)


@given(st.sampled_from(TYPES), rope_numbers, ropes, st.sampled_from(["llama", "gemma3", "phi3"]))
@tries(300)
def test_scalings(kind, factor, changes, architecture):
    """What is accepted turns every pair, finitely."""
    config = tiny.tiny_config(architecture)
    scaling = {"rope_type": kind, "factor": factor} | changes

    def tables():
        checked = check_scaling(scaling, config)
        return checked, compute_table(checked, config)

    if found := refused_or_done(tables):
        _, table = found
        assert torch.isfinite(table.inv_freq).all() and (table.inv_freq >= 0).all()
        assert 0 < table.attention_scaling < 1e6


@given(st.lists(st.one_of(st.sampled_from(["train", "r", "--seed", "--a.b", "--", "-"]), texts)))
@tries(150)
def test_command_lines(words):
    found = refused_or_done(_split, words)
    if found:
        rest, overrides = found
        assert len(rest) + len(overrides) <= len(words)
