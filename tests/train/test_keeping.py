"""A stage that keeps a share of its change."""

import shutil

import pytest
import torch

import small_run
from linearard.errors import RecipeError
from linearard.train import RestorationConfig


def weights(folder, base, keep, kind="direct"):
    made = small_run.one_stage(folder, base, sequences=8, keep=keep, learning_rate=1e-2)
    made["adapter"] = {"kind": kind, "dropout": 0.0} if kind == "lora" else {"kind": kind}
    run = small_run.train(made)
    return made, run, small_run.final_weights(run)


def test_weights_end_on_the_line_between_begin_and_end(tmp_path, base_folder):
    *_, tenth = weights(tmp_path / "a", base_folder, 0.1)
    *_, half = weights(tmp_path / "b", base_folder, 0.5)
    *_, whole = weights(tmp_path / "c", base_folder, 1.0)
    for name, end in whole.items():
        change = (end - tenth[name]).double() / 0.9  # of the whole stage
        assert change.abs().max() > 1e-3
        torch.testing.assert_close((end - half[name]).double(), change / 2, rtol=0, atol=1e-6)


def test_a_finished_stage_found_again_keeps_the_same(tmp_path, base_folder):
    made, run, once = weights(tmp_path, base_folder, 0.5)
    shutil.rmtree(run / "final")
    again = small_run.final_weights(small_run.train(made, "--resume"))
    assert again.keys() == once.keys()
    assert all(torch.equal(again[name], once[name]) for name in once)


@pytest.mark.parametrize("keep", [0, -1, 1.5])
def test_no_share(tmp_path, keep):
    with pytest.raises(RecipeError, match="keep to be a share above 0"):
        RestorationConfig(output_dir=str(tmp_path), keep=keep)
