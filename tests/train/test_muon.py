"""Muon: what a step does to a matrix, resuming, and what it refuses."""

import shutil

import torch
from safetensors.torch import load_file

import small_run
import tiny
from linearard.cli.main import main

RATE = 1e-2


def recipe(folder, base, **stage):
    made = small_run.one_stage(
        folder, base, muon=True, learning_rate=RATE, sequences=8, save_steps=2, **stage
    )
    made["adapter"] = {"kind": "direct"}
    return made


def test_a_step_turns_the_first_directions_alike(tmp_path, base_folder):
    """The change of every matrix after one step: singular values of one size, which is AdamW's."""
    made = recipe(tmp_path, base_folder, max_steps=1, lr_scheduler_type="constant")
    after = small_run.final_weights(small_run.train(made))
    (path,) = base_folder.glob("*.safetensors")
    before = load_file(path)
    compared = 0
    for name, weight in after.items():
        stem = name.removeprefix("base_model.model.")
        (old,) = [value for key, value in before.items() if key.endswith(stem)]
        change = (weight.double() - old.double()) / (RATE * 0.2 * max(weight.shape) ** 0.5)
        found = torch.linalg.svdvals(change)
        # Five steps of Newton and Schulz take what is not much smaller than the largest to .7 to 1.2.
        assert found[0] < 1.25
        assert found[5] > 0.65
        compared += 1
    assert compared == 9  # q, k, v of three layers


def test_resume(tmp_path, base_folder):
    made = recipe(tmp_path, base_folder)
    run = small_run.train(made)
    whole = small_run.final_bytes(run)
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "stage1-only" / "checkpoint-8")
    assert (run / "stage1-only" / "checkpoint-6").is_dir()
    assert small_run.final_bytes(small_run.train(made, "--resume")) == whole


def test_trained_vectors_are_refused(tmp_path, capsys):
    base = tiny.save_tiny_base(tmp_path / "base", attention_bias=True)
    path = small_run.write_recipe(recipe(tmp_path, base), tmp_path / "r.yaml")
    assert main(["train", str(path), "--quiet"]) == 2
    message = capsys.readouterr().err
    assert "expected matrices to train with muon" in message
    assert "bias" in message


def test_no_other_optimizer(tmp_path, base_folder, capsys):
    path = small_run.write_recipe(
        recipe(tmp_path, base_folder, optim="adafactor"), tmp_path / "r.yaml"
    )
    assert main(["train", str(path), "--quiet"]) == 2
    assert "optim" in capsys.readouterr().err


def test_no_offloading(tmp_path, base_folder, capsys):
    made = recipe(tmp_path, base_folder, offload_optimizer=True)
    path = small_run.write_recipe(made, tmp_path / "r.yaml")
    assert main(["train", str(path), "--quiet"]) == 2
    assert "offload_optimizer" in capsys.readouterr().err
