"""Weights or optimizer states that no training leaves on purpose: never saved, never called a result."""

import math
from pathlib import Path

import pytest
import torch

import small_run
import tiny
from linearard.cli.main import main
from linearard.errors import CheckpointError, NonFiniteLossError
from linearard.model import load_weights, out_of_range, save_checkpoint, written
from linearard.recipe import RestorationConfig
from linearard.train.trainer import RestorationTrainer


def spoil_update(monkeypatch, step, change):
    """Have the update of a step change the trained weights (and the optimizer) in its own way."""
    plain, calls = torch.optim.AdamW.step, [0]

    def spoilt(optimizer, *arguments, **options):
        result = plain(optimizer, *arguments, **options)
        calls[0] += 1
        if calls[0] == step:
            with torch.no_grad():
                change(optimizer, optimizer.param_groups[0]["params"][1])
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", spoilt)


def of_weights(value):
    return lambda optimizer, weights: weights.view(-1)[3].fill_(value)


def of_moments(value):
    return lambda optimizer, weights: optimizer.state[weights]["exp_avg_sq"].fill_(value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (of_weights(math.nan), ["the weights after step 4 of stage 'only'", "with nan"]),
        (of_weights(-math.inf), ["the weights after step 4", "with inf"]),
        (of_weights(-1e30), ["the weights after step 4", "with 1e+30"]),
        (of_moments(math.nan), ["the optimizer's state after step 4", "exp_avg_sq", "with nan"]),
        (of_moments(3e37), ["the optimizer's state after step 4", "exp_avg_sq", "with 3e+37"]),
    ],
    ids=["nan", "infinite", "grown", "moments", "grown moments"],
)
@pytest.mark.parametrize(
    "saves", [{"save_steps": 1}, {"save_strategy": "no"}], ids=["saved", "not"]
)
def test_the_last_update(change, words, saves, tmp_path, base_folder, monkeypatch, capsys):
    """No later loss could show it; the checkpoint before stays, and neither another nor `final` is there."""
    recipe = small_run.one_stage(tmp_path, base_folder, sequences=4, **saves)
    run = Path(recipe["output_dir"])
    path = str(small_run.write_recipe(recipe, tmp_path / "recipe.yaml"))
    spoil_update(monkeypatch, 4, change)
    assert main(["train", path, "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for word in [*words, "lower learning_rate".capitalize(), "--overwrite"]:
        assert word in line
    complete = sorted(p.name for p in run.glob("stage1-only/*") if written.is_complete(p))
    assert complete == (["checkpoint-2", "checkpoint-3"] if "save_steps" in saves else [])
    assert ("checkpoint-3, which is good, is kept" in line) == ("save_steps" in saves)
    assert not (run / "final").exists()


def test_a_refused_step_does_not_keep_what_spoilt_it(tmp_path, base_folder, monkeypatch, capsys):
    """Nor says that it did."""
    recipe = small_run.one_stage(tmp_path, base_folder, sequences=4, save_steps=2)
    path = str(small_run.write_recipe(recipe, tmp_path / "recipe.yaml"))
    spoil_update(monkeypatch, 3, of_weights(math.nan))
    assert main(["train", path, "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "in step 4 of stage 'only'" in line and "is kept in" not in line
    assert "the state before it is no good either, and was not saved: " in line
    stage = Path(recipe["output_dir"]) / "stage1-only"
    assert [path.name for path in stage.iterdir()] == ["checkpoint-2"]


def test_a_broken_model_is_neither_written_nor_read(tmp_path):
    restorable = tiny.tiny_restorable()
    save_checkpoint(restorable, tmp_path / "good")
    with torch.no_grad():
        restorable.adapter.parameters()[-1].view(-1)[0] = math.nan
    with pytest.raises(NonFiniteLossError, match=r"the trained weights to be finite .*with nan"):
        save_checkpoint(restorable, tmp_path / "good")
    assert written.damage(tmp_path / "good") == ""
    restorable.adapter.save(tmp_path / "good")
    written.complete(tmp_path / "good")
    with pytest.raises(CheckpointError, match=r"finite weights.*with nan"):
        load_weights(tiny.tiny_restorable(), tmp_path / "good")


def test_sizes_are_of_floating_numbers_alone():
    named = [
        ("step", torch.tensor(10**7)),
        ("none", torch.empty(0)),
        ("half", torch.ones(3).bfloat16()),
    ]
    assert out_of_range(named, 1.0) == ""
    assert out_of_range([*named, ("low", torch.tensor([0.5, -1.5]))], 1.0) == "low with 1.5"


def test_training_from_python_is_checked_too(tmp_path, monkeypatch):
    arguments = RestorationConfig(
        output_dir=str(tmp_path), window=41, use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    blocks = [{"input_ids": tiny.tokens(1, 41)[0]}]
    trainer = RestorationTrainer(tiny.tiny_restorable(), arguments, blocks)
    spoil_update(monkeypatch, 1, of_weights(math.inf))
    with pytest.raises(NonFiniteLossError, match="the weights after step 1"):
        trainer.train()
