"""Held-out windows that watch a stage: rates tried out, divergence undone, the share chosen, and resumed."""

import json
import math
import shutil

import pytest
import torch

import small_run
from linearard.cli.main import main
from linearard.errors import RecipeError
from linearard.recipe.held_out import HeldOutConfig
from linearard.train.guard import Guard
from linearard.train.held_out import Look
from linearard.train.rate_trials import choose_rate
from linearard.train.watched import _write_decisions
from linearard.train.weight_interpolation import InitialWeights

WATCH = {"window": 24, "sequences": 2, "long_window": 56, "every": 2}


class FewWeights:
    """An adapter of so many trained numbers, all zero."""

    config = type("Config", (), {"kind": "direct"})

    def __init__(self, count):
        self.weight = torch.nn.Parameter(torch.zeros(count))

    def parameters(self):
        return [self.weight]


def recipe(folder, base, kind="lora", rate=1e-2, **held_out):
    made = small_run.one_stage(folder, base, sequences=16, save_steps=3, learning_rate=rate)
    (stage,) = made["stages"].values()
    stage["objective"] = {"relations": {}, "logit_weight": 1, "logit_positions": None}
    stage["held_out"] = WATCH | held_out
    if kind == "direct":
        made["adapter"] = {"kind": "direct"}
    return made


def decisions(run):
    return json.loads((run / "stage1-only" / "held_out.json").read_text())


@pytest.mark.parametrize(
    ("kls", "trials", "chosen", "tried"),
    [
        ({1: 0.5, 2: 0.6, 0.5: 0.55}, 3, 1, [1, 2, 0.5]),
        ({1: 0.5, 2: 0.3, 4: 0.2, 8: 0.25}, 4, 4, [1, 2, 4, 8]),
        ({1: 0.5, 2: 0.49, 0.5: 0.45, 0.25: 0.44}, 4, 0.25, [1, 2, 0.5, 0.25]),
        # Every rate makes it worse: halved beyond the trials that were asked for.
        (
            {1: 3.0, 0.5: 2.0, 0.25: 1.5, 0.125: 0.9, 0.0625: 0.95},
            2,
            0.125,
            [1, 0.5, 0.25, 0.125, 0.0625],
        ),
        ({1: math.nan, 0.5: math.nan, 0.25: 0.8, 0.125: 0.85}, 3, 0.25, [1, 0.5, 0.25, 0.125]),
    ],
)
def test_the_rate_that_is_chosen(kls, trials, chosen, tried):
    found = choose_rate(Look(1.0), lambda factor: Look(kls[factor]), trials)
    assert found.factor == chosen
    assert list(found.found) == tried
    assert not found.harmful


@pytest.mark.parametrize(
    ("kls", "trials", "chosen", "tried"),
    [
        # Looks of real trials, begun at a KL of .0051, .0011 and .0007: SmolLM2, Qwen2.5 0.5B and 1.5B.
        ({1: 0.0087, 2: 0.0132}, 3, 1, [1, 2]),
        ({1: 0.0215, 0.5: 0.0107, 0.25: 0.0064}, 3, 0.5, [1, 0.5]),
        ({1: 0.006, 2: 0.007, 4: 0.009, 8: 0.01}, 3, 4, [1, 2, 4]),
        (
            {1: 0.9, 0.5: 0.4, 0.25: 0.2, 0.125: 0.05, 0.0625: 0.004},
            2,
            0.0625,
            [1, 0.5, 0.25, 0.125, 0.0625],
        ),
        ({1: math.nan, 0.5: 0.006}, 3, 0.5, [1, 0.5]),
    ],
)
def test_with_long_windows_the_rate_is_as_high_as_kl_allows(kls, trials, chosen, tried):
    """What long windows gain in a few steps decides nothing, unless they lose."""

    def attempt(factor):
        return Look(kls[factor], 4.0 + 0.04 * math.sin(9 * factor), 1.0)

    found = choose_rate(Look(0.0051, 4.0, 1.0), attempt, trials)
    assert (found.factor, list(found.found), found.harmful) == (chosen, tried, False)
    lost = choose_rate(Look(0.0051, 3.9, 1.0), lambda factor: Look(0.005, 4.0, 1.0), trials)
    assert lost.harmful


def test_no_rate_helps():
    found = choose_rate(Look(1.0), lambda factor: Look(2.0 + factor), 2)
    assert found.harmful
    assert len(found.found) == 6


@pytest.mark.parametrize("kind", ["lora", "direct"])
def test_trials_leave_nothing_behind(kind, tmp_path, base_folder):
    """A stage whose trials chose the rate that was asked for ends like one without trials."""
    once = small_run.final_bytes(small_run.train(recipe(tmp_path / "a", base_folder, kind)))
    tried = recipe(tmp_path / "b", base_folder, kind, rate_trials=2, rate_steps=2)
    run = small_run.train(tried)
    found = decisions(run)
    assert len(found["trials"]) >= 2
    if found["learning_rate"] != 1e-2:
        again = recipe(tmp_path / "c", base_folder, kind, rate=found["learning_rate"])
        once = small_run.final_bytes(small_run.train(again))
    assert small_run.final_bytes(run) == once


def test_a_rate_far_too_high_is_undone(tmp_path, base_folder):
    """A rate at which the model breaks within two steps: the run ends no worse than it began."""
    run = small_run.train(recipe(tmp_path, base_folder, "direct", rate=30.0))
    found = decisions(run)
    assert found["returns"]
    assert found["ended"]["kl"] <= 1.5 * found["begun"]["kl"] + 0.01


@pytest.fixture(scope="module")
def watched(base_folder, tmp_path_factory):
    """A recipe with every decision, the bits that its run ends in, and what was decided."""
    folder = tmp_path_factory.mktemp("watched")
    made = recipe(folder, base_folder, rate=0.3, shares=[0.5, 1.0], rate_trials=2, rate_steps=1)
    run = small_run.train(made)
    return made, small_run.final_bytes(run), decisions(run)


def _as_before_its_end(path):
    decided = json.loads(path.read_text())
    early = {name: decided[name] for name in ("learning_rate", "begun", "untrained", "trials")}
    path.unlink()
    _write_decisions(path.parent, early)


def _other_rate(path):
    path.write_text(path.read_text().replace('"learning_rate": 0.', '"learning_rate": 0.0'))


@pytest.mark.parametrize(
    ("state", "cut_off"),
    [
        (_as_before_its_end, "within the stage"),
        (_other_rate, "within the stage"),
        (lambda path: path.write_bytes(b""), "within the stage"),
        (lambda path: path.write_text("[1]"), "after it"),
        (lambda path: path.unlink(), "after it"),
    ],
)
def test_a_watched_run_that_was_cut_off_ends_the_same(state, cut_off, watched, tmp_path):
    """Whatever has become of what it had decided."""
    made, once, decided = watched
    run = tmp_path / "run"
    shutil.copytree(made["output_dir"], run)
    shutil.rmtree(run / "final")
    stage = run / "stage1-only"
    if cut_off == "within the stage":
        latest = max(stage.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        shutil.rmtree(latest)
    state(stage / "held_out.json")
    again = made | {"output_dir": str(run)}
    assert small_run.final_bytes(small_run.train(again, "--resume")) == once
    assert decisions(run)["looks"] == decided["looks"]
    assert decisions(run)["learning_rate"] == decided["learning_rate"]


def test_a_share_is_chosen_by_what_is_looked_at():
    adapter = FewWeights(3)
    beginning = InitialWeights(adapter)
    with torch.no_grad():
        adapter.weight += 1.0

    def look():  # KL is least at a share of .6; the long window wants all of the change, a little
        value = float(adapter.weight.detach()[0])
        return Look((value - 0.6) ** 2, 1.0 - 0.05 * value, 1.0)

    share, found = beginning.best_share([0.2, 0.6, 1.0], look, Look(1.0, 1.0, 1.0))
    assert share == 0.6
    assert sorted(found) == [0.2, 0.6, 1.0]
    torch.testing.assert_close(adapter.weight.detach(), torch.full((3,), 0.6))


@pytest.mark.parametrize(
    ("untrained", "chosen"),
    [(Look(0.63, 9.0, 9.0), 1.0), (Look(0.32, 9.0, 9.0), 0.5), (Look(0.01, 9.0, 9.0), 0.25)],
)
def test_no_share_is_kept_that_is_worse_than_the_untrained_model(untrained, chosen):
    """The more is kept, the better the long windows and the larger the KL, which is to be a fifth less."""

    adapter = FewWeights(1)
    beginning = InitialWeights(adapter)
    with torch.no_grad():
        adapter.weight += 1.0

    def look():
        value = float(adapter.weight.detach()[0])
        return Look(0.5 * value, 9 - value, 1.0)

    assert beginning.best_share([0.25, 0.5, 1.0], look, untrained)[0] == chosen
    with torch.no_grad():
        adapter.weight.fill_(1.0)
    # Where none is so much nearer, one that is no worse has to do.
    assert beginning.best_share([0.5, 1.0], look, Look(0.26, 9.0, 9.0))[0] == 0.5


def test_returns_end_in_the_last_good_weights():
    class HeldOut:
        look = staticmethod(
            lambda view="restored": Look(float(adapter.weight.detach().abs().max()) + 0.01)
        )

    adapter = FewWeights(2)
    guard = Guard(adapter, HeldOut, HeldOutConfig(every=1))
    guard.begin()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    state = type("State", (), {"global_step": 1, "max_steps": 100})
    control = type("Control", (), {"should_training_stop": False, "should_save": False})
    for times in range(1, 6):
        with torch.no_grad():
            adapter.weight += 5.0
        guard.on_step_end(None, state, control, optimizer=optimizer, lr_scheduler=schedule)
        assert not adapter.weight.detach().any()
        assert len(guard.returns) == times
        assert control.should_training_stop == (times == 5)
    assert optimizer.param_groups[0]["lr"] == schedule.base_lrs[0] == 0.5**4


def test_what_cannot_be_watched(tmp_path, base_folder, capsys):
    with pytest.raises(RecipeError, match=r"held_out\.shares to be a list"):
        HeldOutConfig(shares=[0.5, 1.5])
    made = recipe(tmp_path, base_folder, long_window=4096)
    path = small_run.write_recipe(made, tmp_path / "r.yaml")
    assert main(["train", str(path), "--quiet"]) == 2
    assert "held_out.long_window of at most" in capsys.readouterr().err
