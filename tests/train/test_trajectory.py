"""What must not change a training run: how a batch is split, over how many processes, what is recomputed.

Where only the order of float32 additions differs, losses and weights agree to a tolerance. It follows
from the arithmetic: a mean over four windows is the same four float32 numbers added in another order,
a relative error of a few 2^-24 = 6e-8 in the loss and in each gradient (measured: 1.2e-7 in the loss).
AdamW divides a gradient by its own size, so an entry whose gradient is near zero can turn such an error
into a visible part of a step of 1e-2 (measured: 3e-6 in the worst entry, 6e-8 root mean square).
"""

import contextlib
import json

import pytest
import torch

import small_run
from linearard.cli.main import main
from linearard.model.adapters import Adapter

LOSS = {"rtol": 2e-6, "atol": 0.0}
WEIGHT_ABSOLUTE = 5e-5
WEIGHT_RMS = 1e-6


def assert_same_run(one, other, *, stage="stage1-only", steps=None):
    """Losses of every step and final weights of two runs."""
    a, b = (torch.tensor(small_run.losses(run, stage)) for run in (one, other))
    assert len(a) == len(b) and (steps is None or len(a) == steps)
    torch.testing.assert_close(a, b, **LOSS)
    x, y = small_run.final_weights(one), small_run.final_weights(other)
    assert x.keys() == y.keys()
    difference = torch.cat([(x[name] - y[name]).flatten() for name in x])
    assert difference.abs().max() < WEIGHT_ABSOLUTE
    assert difference.square().mean().sqrt() < WEIGHT_RMS


def assert_trained(run):
    """The comparison means something: the weights have moved far more than the tolerance."""
    weights = small_run.final_weights(run)
    moved = torch.cat([w.flatten() for name, w in weights.items() if "lora_B" in name])
    assert moved.square().mean().sqrt() > 1000 * WEIGHT_RMS


OBJECTIVES = {
    "self": {},
    "qk": {"relations": {"qk": 1}},
    "all": {"relations": {"q": 1, "k": 1, "v": 1, "qk": 1}, "logit_weight": 1, "lm_weight": 1},
    "lm": {"relations": {}, "lm_weight": 1},
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_accumulation_is_batch_size(objective, tmp_path, base_folder):
    """Four windows at once, and one at a time: 18 windows, so the last step holds only two."""
    options = {"objective": OBJECTIVES[objective], "sequences": 18}
    once = small_run.one_stage(
        tmp_path / "a", base_folder, per_device_train_batch_size=4, **options
    )
    split = small_run.one_stage(
        tmp_path / "b", base_folder, gradient_accumulation_steps=4, **options
    )
    once, split = small_run.train(once), small_run.train(split)
    assert_trained(once)
    assert_same_run(once, split, steps=5)


#: Windows beyond the native one in which some tokens repeat earlier ones: how many differs from window to
#: window, and so does the number of positions that each of these terms counts.
COUNTS = {
    "recall": {"relations": {}, "repeated_weight": 1},
    "logit": {"relations": {}, "logit_weight": 1, "logit_positions": None, "repeated_weight": 1e-3},
    "together": {
        "relations": {},
        "logit_weight": 1,
        "logit_positions": 100,
        "lm_weight": 0.5,
        "repeated_weight": 1,
    },
}
REPEATING = {"window": 256, "data": {"repeated_passages": 0.3}}


@pytest.mark.parametrize("objective", COUNTS)
def test_a_step_is_one_sum_where_windows_count_differently(objective, tmp_path, base_folder):
    """Four at once, four times one and twice two: seven windows, of which the last step has three."""
    runs = []
    for batch, accumulated in ((4, 1), (1, 4), (2, 2)):
        recipe = small_run.one_stage(
            tmp_path / str(batch),
            base_folder,
            objective=COUNTS[objective],
            sequences=7,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            **REPEATING,
        )
        runs.append(small_run.train(recipe))
    assert_trained(runs[0])
    for other in runs[1:]:
        assert_same_run(runs[0], other, steps=2)
        for one, two in zip(
            *(small_run.history(run, "stage1-only") for run in (runs[0], other)), strict=True
        ):
            for name in one.keys() & {"recall", "logit_kl", "lm"}:
                assert one[name] == pytest.approx(two[name], rel=1e-5)


def test_terms_are_logged_as_means_over_the_step(tmp_path, base_folder):
    """The loss of a step is the sum of its logged terms, however the step is split."""
    options = {"objective": OBJECTIVES["all"], "gradient_accumulation_steps": 2}
    run = small_run.train(small_run.one_stage(tmp_path, base_folder, **options))
    for entry in small_run.history(run, "stage1-only"):
        terms = [value for name, value in entry.items() if name.startswith("relation_")]
        assert len(terms) == 4
        total = sum(terms) + entry["logit_kl"] + entry["lm"]
        assert entry["loss"] == pytest.approx(total, rel=1e-5)


def test_two_processes_are_twice_the_batch(tmp_path, base_folder):
    """Two processes with DistributedDataParallel; `qk` leaves the last layer's values without gradient.

    Both runs see the windows in one order: Trainer deals its batches out to the processes in turn.
    """
    stages = {
        name: {
            "window": 48,
            "sequences": 12,
            "learning_rate": 1e-2,
            "warmup_steps": 1,
            "objective": OBJECTIVES[name],
        }
        for name in ("self", "qk", "lm")
    }
    stages["hidden"] = stages["lm"] | {"objective": {"relations": {}, "hidden_weight": 1}}
    stages["counts"] = stages["lm"] | REPEATING | {"objective": COUNTS["together"]}
    runs = []
    for processes, batch in ((1, 4), (2, 2)):
        place = tmp_path / str(processes)
        recipe = small_run.small_recipe(place, base_folder, adapter__dropout=0.0)
        recipe["stages"] = {
            name: stage | {"per_device_train_batch_size": batch} for name, stage in stages.items()
        }
        path = small_run.write_recipe(recipe, place / "recipe.yaml")
        if processes == 1:
            assert main(["train", str(path), "--quiet"]) == 0
        else:
            result = small_run.launch("train", str(path), "--quiet", processes=processes)
            assert result.returncode == 0, result.stderr
        runs.append(place / "run")
    assert_trained(runs[0])
    for index, name in enumerate(stages, 1):
        assert_same_run(*runs, stage=f"stage{index}-{name}", steps=3)
        # One process speaks for both, and nobody else says a word.
        tokens = 12 * stages[name]["window"]
        assert result.stderr.count(f"stage {name}: 3 steps, {tokens:,} tokens") == 1
    assert len(result.stderr.splitlines()) == 6, result.stderr
    assert result.stdout == ""
    metadata = json.loads((runs[1] / "stage3-lm/checkpoint-3/linearard.json").read_text())
    assert metadata["processes"] == 2


@pytest.mark.parametrize(
    ("kind", "objective"), [*(("lora", name) for name in OBJECTIVES), ("direct", "all")]
)
def test_recomputation_changes_nothing(kind, objective, tmp_path, base_folder):
    """Gradient checkpointing computes the same numbers again: equal bit for bit, dropout included."""
    runs = []
    for kept in (None, 0, 1):
        recipe = small_run.one_stage(
            tmp_path / str(kept),
            base_folder,
            objective=OBJECTIVES[objective],
            gradient_checkpointing=kept is not None,
            kept_layers=kept or 0,
            sequences=4,
            per_device_train_batch_size=2,
        )
        recipe["adapter"] = {"kind": kind, "r": 4, "alpha": 8, "dropout": 0.1}
        runs.append(small_run.train(recipe))
    for run in runs[1:]:
        assert small_run.losses(runs[0]) == small_run.losses(run)
        assert small_run.final_bytes(runs[0]) == small_run.final_bytes(run)


@pytest.mark.parametrize("objective", ["all", "self"])
def test_casts_left_to_autocast_change_nothing(objective, tmp_path, base_folder, monkeypatch):
    """In bfloat16: the same bits as with peft's casts up to float32, which autocast undoes."""
    finals = []
    for kept in (True, False):
        with monkeypatch.context() as patch:
            if kept:
                patch.setattr(Adapter, "without_casts", lambda self: contextlib.nullcontext())
            recipe = small_run.one_stage(
                tmp_path / str(kept),
                base_folder,
                objective=OBJECTIVES[objective],
                sequences=8,
                gradient_checkpointing=True,
            )
            recipe["model"]["dtype"] = "bfloat16"
            finals.append(small_run.train(recipe))
    assert small_run.final_bytes(finals[0]) == small_run.final_bytes(finals[1])
    assert_trained(finals[0])


def test_a_stage_does_not_inherit_recomputation(tmp_path, base_folder):
    """Only the first stage recomputes; the second trains as if the first had not."""
    finals = []
    for recompute in (False, True):
        recipe = small_run.small_recipe(
            tmp_path / str(recompute),
            base_folder,
            stages__restoration__gradient_checkpointing=recompute,
            stages__cpt__objective={"relations": {"q": 1, "qk": 1}},
            stages__cpt__window=48,
        )
        finals.append(small_run.final_bytes(small_run.train(recipe)))
    assert finals[0] == finals[1]


def test_the_same_seed_repeats_and_another_does_not(tmp_path, base_folder):
    """Bit for bit, with dropout and shuffling."""
    finals = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        recipe = small_run.small_recipe(tmp_path / name, base_folder, seed=seed)
        finals.append(small_run.final_bytes(small_run.train(recipe)))
    assert finals[0] == finals[1] != finals[2]


def test_a_schedule_the_recipe_names_is_followed(tmp_path, base_folder):
    """`linear` ends near zero; without a name the rate ends at lr_floor of its peak."""
    ends = []
    for name, changes in (("a", {"lr_scheduler_type": "linear"}), ("b", {"lr_floor": 0.5})):
        recipe = small_run.one_stage(tmp_path / name, base_folder, warmup_steps=0, **changes)
        entries = small_run.history(small_run.train(recipe), "stage1-only")
        ends.append(entries[-1]["learning_rate"] / 1e-2)
    assert ends[0] == pytest.approx(1 / 16, rel=1e-6)
    assert 0.5 < ends[1] < 0.52


def test_counts_in_the_summary(tmp_path, base_folder, capsys):
    """An epoch's last step may be short, and max_steps may stop in the middle of one."""
    recipe = small_run.small_recipe(
        tmp_path,
        base_folder,
        stages__restoration__sequences=10,
        stages__cpt__max_steps=5,
    )
    path = small_run.write_recipe(recipe, tmp_path / "recipe.yaml")
    assert main(["train", str(path), "--quiet"]) == 0
    printed = capsys.readouterr().err
    assert f"stage restoration: 6 steps, {2 * 10 * 48:,} tokens" in printed
    assert f"stage cpt: 5 steps, {(8 + 2) * 96:,} tokens" in printed
