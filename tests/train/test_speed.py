"""Figures of speed in a trainer's log."""

import math
import time

import pytest
import torch

import small_run
import tiny
from linearard.counting import step_flops
from linearard.distill import ObjectiveConfig
from linearard.train.progress import Speed, peak_flops

PARTS = {
    "near": ObjectiveConfig(relations={"q": 1.0, "qk": 1.0}),
    "text": ObjectiveConfig(relations={}, lm_weight=1.0),
}


def test_operations_of_every_batch_are_counted():
    restorable = tiny.tiny_restorable()
    speed = Speed(restorable, PARTS, torch.bfloat16)
    assert "mfu" not in speed.read(1)  # not on a GPU
    speed._peak = 1e7
    speed.add({"input_ids": tiny.tokens(2, 41), "part": "near"})
    speed.add({"input_ids": tiny.tokens(1, 60), "part": "text"})
    time.sleep(0.02)
    figures = speed.read(2)
    seconds = 142 * 2 / figures["tokens_per_second"]
    assert seconds >= 0.02
    assert figures["seconds_per_sequence"] == pytest.approx(seconds / 6)
    needed = [
        step_flops(restorable.config, PARTS[name], n, batch, adapter=restorable.adapter.config)
        for name, n, batch in (("near", 41, 2), ("text", 60, 1))
    ]
    assert min(needed) > 1e6
    assert figures["mfu"] == pytest.approx(sum(needed) / seconds / 1e7)
    assert "mfu" not in speed.read(2) and speed.read(2)["tokens_per_second"] == 0


def test_a_log_tells_the_time_of_a_sequence(tmp_path, base_folder):
    run = small_run.train(small_run.one_stage(tmp_path, base_folder))
    entries = [e for e in small_run.history(run, "stage1-only") if "loss" in e]
    for entry in entries:
        assert entry["seconds_per_sequence"] * entry["tokens_per_second"] == pytest.approx(48)
        assert "mfu" not in entry


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_peak_and_utilisation_on_a_gpu(tmp_path, base_folder):
    state = torch.cuda.get_rng_state()
    assert 1e12 < peak_flops(torch.device("cuda", 0), torch.bfloat16) < 1e16
    assert torch.equal(torch.cuda.get_rng_state(), state)
    recipe = small_run.one_stage(tmp_path, base_folder)
    recipe["model"] |= {"device": "cuda", "dtype": "bfloat16"}
    for entry in small_run.history(small_run.train(recipe), "stage1-only"):
        assert "loss" not in entry or (0 < entry["mfu"] < 1 and math.isfinite(entry["mfu"]))
