"""A stage that keeps a share of its change."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

import small_run
from linearard.cli.main import main
from linearard.errors import RecipeError
from linearard.recipe import RestorationConfig


def recipe(folder, base, kind, **stages):
    """Stages by name, each with its share."""
    made = small_run.one_stage(folder, base, sequences=8, save_steps=3)
    if kind == "direct":
        made["adapter"] = {"kind": "direct"}
    (plain,) = made["stages"].values()
    made["stages"] = {name: plain | {"weight_interpolation": keep} for name, keep in stages.items()}
    return made


def ends(folder, base, kind, **stages):
    return small_run.final_weights(small_run.train(recipe(folder, base, kind, **stages)))


@pytest.mark.parametrize("kind", ["direct", "lora"])
def test_weights_end_on_the_line_between_begin_and_end(kind, tmp_path, base_folder):
    quarter, half, whole = (
        ends(tmp_path / str(keep), base_folder, kind, only=keep) for keep in (0.25, 0.5, 1.0)
    )
    (path,) = base_folder.glob("*.safetensors")
    base = load_file(path)
    for name, end in whole.items():
        if (
            "lora_A" in name
        ):  # the other factor began at zero and is scaled alone: the product is on the line
            assert torch.equal(quarter[name], end) and torch.equal(half[name], end)
            continue
        change = (end.double() - quarter[name].double()) / 0.75
        assert change.abs().max() > 1e-3
        expected = end.double() - change / 2
        torch.testing.assert_close(half[name].double(), expected, rtol=0, atol=1e-6)
        begin = end.double() - change
        if kind == "direct":
            stem = name.removeprefix("base_model.model.")
            (known,) = [value.double() for key, value in base.items() if key.endswith(stem)]
            torch.testing.assert_close(begin, known, rtol=0, atol=1e-6)
        elif "lora_B" in name:
            torch.testing.assert_close(begin, torch.zeros_like(begin), rtol=0, atol=1e-6)


@pytest.mark.parametrize("lost", ["final", "second", "first"])
def test_a_run_that_goes_on_keeps_the_same(lost, tmp_path, base_folder):
    """Found finished, in the middle of a stage, or in the middle of the one before."""
    made = recipe(tmp_path, base_folder, "direct", first=0.5, second=0.25)
    run = small_run.train(made)
    once = small_run.final_bytes(run)
    shutil.rmtree(run / "final")
    if lost == "first":
        shutil.rmtree(run / "stage2-second")
    if lost != "final":
        number = 1 if lost == "first" else 2
        stage = run / f"stage{number}-{lost}"
        checkpoints = sorted(stage.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
        assert len(checkpoints) == 2
        shutil.rmtree(checkpoints[-1])
    assert small_run.final_bytes(small_run.train(made, "--resume")) == once


@pytest.mark.parametrize("keep", [0, -1, 1.5])
def test_no_share(tmp_path, keep):
    with pytest.raises(RecipeError, match="weight_interpolation to be a share above 0"):
        RestorationConfig(output_dir=str(tmp_path), weight_interpolation=keep)


def test_checkpoints_of_a_stage_say_what_they_hold(tmp_path, base_folder, capsys):
    run = small_run.train(recipe(tmp_path, base_folder, "direct", first=1.0, second=0.25))
    held = {}
    for folder in (run, *sorted(run.glob("stage*/checkpoint-*"))):
        capsys.readouterr()
        assert main(["export", str(folder), str(tmp_path / "exported"), "--overwrite"]) == 0
        held[folder.parent.name] = capsys.readouterr().err
    assert "at its end 0.25 of that is kept" in held.pop("stage2-second")
    assert not any("is kept" in text for text in held.values())


def test_what_is_gone_on_from_is_said(tmp_path, base_folder, capsys):
    made = recipe(tmp_path, base_folder, "direct", only=0.5)
    path = str(small_run.write_recipe(made, tmp_path / "r.yaml"))
    said = []
    for _ in range(2):
        capsys.readouterr()
        assert main(["train", path, "--resume"]) == 0
        said.append(capsys.readouterr().err)
    assert "nothing to go on from: a new run" in said[0]
    assert f"going on from {made['output_dir']}/stage1-only/checkpoint-" in said[1]
