"""Every field of every section, with values of other kinds and out of any range."""

import dataclasses
import types
import typing

import pytest

from linearard.data import DataConfig
from linearard.distill import ObjectiveConfig
from linearard.evaluation import EvaluationConfig
from linearard.model import AdapterConfig, ModelConfig
from linearard.recipe import PartConfig, RestorationConfig, own_fields
from linearard.recipe.held_out import HeldOutConfig

_LONG = "a" * 5000
_DIGITS = "9" * 5000
#: Texts of YAML that no field of a type takes, whatever its range.
WRONG = {
    bool: ["1", "'no'", "[true]", "{a: true}", ".nan", _DIGITS],
    int: [".nan", ".inf", "0.5", "1e308", f"{2**70}", "-5", "true", "words", "[1]", "{a: 1}"],
    float: [".nan", ".inf", "-.inf", "1e308", f"1{'0' * 400}", "-0.5", "true", "words", "[1]"],
    str: ["3", "0.5", "true", "[a]", "{a: b}", "''", "'  '", f"{_LONG}", '"a\\0b"', '"\\ud83d"'],
    list: ["3", "words", "{a: 1}", "[[1]]", "[.nan]", "[null]", "[{a: 1}]", f"[{_DIGITS}]"],
    dict: ["3", "words", "[1]", "{3: 4}", "{null: 1}", "{? [a] : 1}", "true"],
}
SECTIONS = {
    "model": dataclasses.fields(ModelConfig),
    "adapter": dataclasses.fields(AdapterConfig),
    "data": dataclasses.fields(DataConfig),
    "stages.cpt": own_fields(),
    "stages.mixed.parts.one": dataclasses.fields(PartConfig),
    "stages.cpt.objective": dataclasses.fields(ObjectiveConfig),
    "stages.cpt.held_out": dataclasses.fields(HeldOutConfig),
    "evaluation": dataclasses.fields(EvaluationConfig),
}
KINDS = {
    kind: typing.get_type_hints(kind)
    for kind in (
        ModelConfig,
        AdapterConfig,
        DataConfig,
        RestorationConfig,
        PartConfig,
        ObjectiveConfig,
        HeldOutConfig,
        EvaluationConfig,
    )
}
OWNERS = dict(zip(SECTIONS, KINDS, strict=True))
#: Fields of a stage that hold sections of their own, or take more than one kind of value.
_OTHERS = ("objective", "held_out")


def plain_type(hint: typing.Any) -> type:
    """The one plain type of a field, whatever it holds and whether it may be null."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
    return typing.get_origin(hint) or hint


CASES = {
    f"{section}.{item.name}": plain_type(KINDS[OWNERS[section]][item.name])
    for section, items in SECTIONS.items()
    for item in items
    if item.name not in _OTHERS
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_values_of_a_field(name, refused):
    for text in WRONG[CASES[name]]:
        line = refused("train", "recipe.yaml", f"--{name}={text}")
        assert name in line, (text, line)


def test_the_table_is_long():
    """Fields times values: distinct bad inputs of this file alone."""
    assert sum(len(WRONG[kind]) for kind in CASES.values()) > 700


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "model.dtype": ["bf16", "half", "float8", "BFLOAT16", "torch.float32"],
        "model.device": ["gpu", "cuda:x", "meta", "mps", "xpu", "cpu:1", "cuda:-1", "cuda:999999"],
        "model.gguf_file": ["/etc/x.gguf", "../x.gguf", "a/../../x.gguf", "~/x.gguf"],
        "model.name": ["package:", "package:a.b", "package:../x", "/nowhere", "./x", "~none/x"],
        "adapter.r": ["0", "65537"],
        "adapter.alpha": ["0", "1e7"],
        "adapter.dropout": ["1", "1.5"],
        "adapter.target_modules": ["[]", "[q_proj, q_proj]", "['']"],
        "adapter.kind": ["LoRA", "none"],
        "adapter.rotary_pairs": ["moved", "fast"],
        "data.validation_fraction": ["1", "1.0001"],
        "data.repeated_passages": ["0.6"],
        "data.repeated_opening": ["0", "17"],
        "data.max_documents": ["0"],
        "data.seed": [f"{2**32}"],
        "stages.cpt.window": ["0", "1", f"{2**28}"],
        "stages.cpt.sequences": ["0"],
        "stages.cpt.learning_rate": ["0", "0.0", "1e31"],
        "stages.cpt.lr_floor": ["1.1"],
        "stages.cpt.weight_interpolation": ["0", "1.5"],
        "stages.cpt.num_train_epochs": ["0", "1e7"],
        "stages.cpt.save_steps": ["0"],
        "stages.cpt.logging_steps": ["0"],
        "stages.cpt.save_total_limit": ["0"],
        "stages.cpt.remove_unused_columns": ["true"],
        "stages.cpt.logging_nan_inf_filter": ["true"],
        "stages.cpt.lr_scheduler_type": ["Cosine", "reduce_lr_on_plateau", "3"],
        "stages.cpt.objective.temperature": ["0", "1e4"],
        "stages.cpt.objective.layers": ["[]", "[0, 0]", "[7]", "[-4]"],
        "stages.cpt.objective.layer_weights": ["[]", "[0, 0]", "[-1, 1]"],
        "stages.cpt.objective.teacher_window": ["3", "1", "48"],
        "stages.cpt.objective.relations": ["{o: 1}", "{q: -1}", "{q: .nan}", "{q: x}"],
        "stages.cpt.objective.inputs": ["students"],
        "stages.cpt.objective.implementation": ["cuda"],
        "evaluation.perplexity_windows": ["[1]", "[48, 48]", "[0]", "[48.5]"],
        "evaluation.passkey_depths": ["[1.5]", "[-0.1]", "[0, 0]"],
        "evaluation.retrieval_tasks": ["[singles]", "[single, single]"],
        "evaluation.task_split": ["train", "half"],
        "evaluation.texts": ["{'': a}", "{a: ''}", "{a: 3}"],
        "evaluation.generation_tokens": ["1"],
        "evaluation.seed": [f"{2**32}", f"{2**62}"],
        "deterministic": ["1", "yes please", ".nan", "null", "[true]"],
        "seed": ["-1", f"{2**32}", f"{2**70}", ".nan", "words", "0.5", "true", "null", "[1]"],
        "output_dir": ["3", "null", "''", "[a]", "~nobody-there/x", "a" * 300, '"a\\0b"'],
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_out_of_range(name, values, refused):
    for text in values:
        line = refused("train", "recipe.yaml", f"--{name}={text}")
        assert name.rpartition(".")[2] in line or "model" in line, (text, line)
