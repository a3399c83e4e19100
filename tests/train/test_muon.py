"""Muon: what a step does to a matrix, resuming, and what it refuses."""

import shutil

import torch
from safetensors.torch import load_file

import small_run
import tiny
from linearard.cli.main import main
from linearard.train.optimizers import MuonWithAdamW

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


def test_vectors_are_trained_by_adamw(tmp_path):
    """One step of a model whose q, k, v have biases: matrices by Muon, biases by AdamW's own step."""
    base = tiny.save_tiny_base(tmp_path / "base", attention_bias=True)
    made = recipe(tmp_path, base, max_steps=1, lr_scheduler_type="constant")
    after = small_run.final_weights(small_run.train(made))
    (path,) = base.glob("*.safetensors")
    before = load_file(path)
    biases = [name for name in after if name.endswith("bias")]
    assert len(biases) == 9
    for name in biases:
        (old,) = [value for key, value in before.items() if key.endswith(name)]
        change = (after[name].double() - old.double()).abs()
        # AdamW's first step moves every number by the learning rate, whatever its gradient.
        assert ((change - RATE).abs() < 0.02 * RATE).double().mean() > 0.9


def test_one_schedule_and_one_state_for_both():
    torch.manual_seed(0)
    matrix, vector = torch.nn.Parameter(torch.randn(7, 5)), torch.nn.Parameter(torch.randn(5))
    optimizer = MuonWithAdamW([matrix, vector], lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    halves = []
    for _ in range(2):
        before = [matrix.detach().clone(), vector.detach().clone()]
        ((torch.ones(3, 7) @ matrix) * vector).square().sum().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        halves.append([bool((a != b).any()) for a, b in zip((matrix, vector), before, strict=True)])
    assert halves == [[True, True], [False, False]]  # a rate of 0 reaches both
    again = MuonWithAdamW(
        [torch.nn.Parameter(matrix.detach().clone()), torch.nn.Parameter(vector.detach().clone())]
    )
    again.load_state_dict(optimizer.state_dict())
    for old, new in zip((matrix, vector), again.param_groups, strict=True):
        (loaded,) = new["params"]
        for key, value in optimizer.state[old].items():
            assert torch.equal(again.state[loaded][key], value)


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
