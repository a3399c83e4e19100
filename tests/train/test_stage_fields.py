"""Which fields of `TrainingArguments` a stage takes: those with which a resumed run ends in the same bits."""

import dataclasses
from pathlib import Path

import pytest
from poisoned import Poison
from transformers import TrainingArguments

import small_run
from linearard.cli.main import main
from linearard.distill import RestorationModule
from linearard.errors import RecipeError
from linearard.recipe import RestorationConfig, own_fields, recipe_from_dict
from linearard.recipe.trainer_fields import STAGE_FIELDS

TOGETHER = {
    "schedule": {
        "max_steps": 5,
        "lr_scheduler_type": "polynomial",
        "lr_scheduler_kwargs": {"power": 2.0},
        "weight_decay": 0.1,
        "adam_beta1": 0.7,
        "adam_beta2": 0.9,
        "adam_epsilon": 1e-5,
        "torch_empty_cache_steps": 2,
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        "disable_tqdm": True,
        "ddp_bucket_cap_mb": 1,
        "ddp_timeout": 60,
    },
    "reading": {
        "optim": "sgd",
        "train_sampling_strategy": "sequential",
        "logging_first_step": True,
        "log_level": "error",
        "log_level_replica": "error",
        "dataloader_num_workers": 1,
        "dataloader_persistent_workers": True,
        "dataloader_prefetch_factor": 3,
    },
}


def test_all_are_tried():
    assert set(STAGE_FIELDS) == {n for some in TOGETHER.values() for n in some} - {
        "lr_scheduler_type"
    }
    inherited = {item.name for item in dataclasses.fields(TrainingArguments)}
    assert set(STAGE_FIELDS) <= inherited - {item.name for item in own_fields()}


@pytest.mark.parametrize("name", TOGETHER)
def test_a_resumed_run_ends_in_the_same_bits(name, tmp_path, base_folder, monkeypatch, capsys):
    recipes = []
    for place in ("undisturbed", "refused"):
        recipe = small_run.one_stage(tmp_path / place, base_folder, sequences=6, num_train_epochs=2)
        recipe["stages"]["only"] |= {"per_device_train_batch_size": 2, **TOGETHER[name]}
        recipe["adapter"]["dropout"] = 0.1
        recipes.append(recipe)
    undisturbed = small_run.final_bytes(small_run.train(recipes[0]))
    path = str(small_run.write_recipe(recipes[1], tmp_path / "recipe.yaml"))
    with monkeypatch.context() as patch:
        patch.setattr(RestorationModule, "forward", Poison(RestorationModule.forward, 5))
        assert main(["train", path, "--quiet"]) == 2
    assert "the state of step 4 is kept" in capsys.readouterr().err
    assert main(["train", path, "--quiet", "--resume"]) == 0
    assert small_run.final_bytes(Path(recipes[1]["output_dir"])) == undisturbed


def test_no_other_is_taken(recipe_without_text):
    """Each is refused by name, with what to do."""
    own = {item.name for item in own_fields()}
    others = [
        item.name
        for item in dataclasses.fields(TrainingArguments)
        if item.name not in own and item.name not in STAGE_FIELDS
    ]
    assert {"save_only_model", "ignore_data_skip", "accelerator_config", "hub_model_id"} < set(
        others
    )
    for name in others:
        recipe_without_text["stages"] = {"only": {"window": 48, name: True}}
        with pytest.raises(RecipeError) as caught:
            recipe_from_dict(recipe_without_text)
        assert name in str(caught.value) and caught.value.fix.endswith(".")


@pytest.fixture
def recipe_without_text():
    return {
        "model": {"name": "x"},
        "rope": {"rope_type": "linear", "factor": 4},
        "data": {"train": "books"},
        "stages": {},
    }


@pytest.mark.parametrize("name", ["save_only_model", "ignore_data_skip"])
def test_from_python_none_that_break_a_resume(name, tmp_path):
    with pytest.raises(RecipeError, match=f"{name}.* false: "):
        RestorationConfig(output_dir=str(tmp_path), use_cpu=True, **{name: True})


@pytest.mark.parametrize("limit", [0, -1])
def test_a_stage_keeps_a_checkpoint(limit, recipe_without_text):
    recipe_without_text["stages"] = {"only": {"save_total_limit": limit}}
    with pytest.raises(RecipeError, match="save_total_limit"):
        recipe_from_dict(recipe_without_text)


def test_stages_and_parts_in_another_order(tmp_path, base_folder, capsys):
    """Each reads other windows, and begins where another ended."""
    recipe = small_run.one_stage(tmp_path, base_folder, sequences=2)
    part = {"window": 48, "sequences": 2}
    recipe["stages"] |= {"other": {"parts": {"one": part, "two": part}}}
    run = small_run.train(recipe)
    only, other = recipe["stages"].items()
    turned = {"parts": dict(reversed(other[1]["parts"].items()))}
    for stages, words in (
        ([other, only], "order of stages: 'only, other' -> 'other, only'"),
        ([only, ("other", turned)], "order of stages.other.parts: 'one, two' -> 'two, one'"),
    ):
        path = small_run.write_recipe(recipe | {"stages": dict(stages)}, tmp_path / "turned.yaml")
        assert main(["train", str(path), "--quiet", "--resume"]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"the recipe that {run} was started with" in line and words in line
