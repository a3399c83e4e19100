"""The log of a long stage stays short."""

import itertools
import json

import pytest

import small_run
from linearard.train import history
from linearard.train.history import MOST_ENTRIES, thin_out


def logged(steps, every=1, begun=()):
    """The log after so many steps, thinned out at each entry."""
    found = list(begun)
    first = found[-1]["step"] + every if found else every
    for step in range(first, steps + 1, every):
        found.append({"step": step, "loss": 1.0})
        thin_out(found, every)
    return found


@pytest.mark.parametrize(("steps", "every"), [(24_000, 1), (24_000, 10), (70_001, 7), (1_999, 1)])
def test_it_is_bounded_and_even(steps, every):
    found = logged(steps, every)
    assert len(found) <= MOST_ENTRIES
    gaps = {b["step"] - a["step"] for a, b in itertools.pairwise(found)}
    assert found[-1]["step"] == steps // every * every
    # Two densities at most, apart from where they meet: all of the older part, all of the newest.
    assert min(gaps) == every and max(gaps) <= max(every, 4 * steps // MOST_ENTRIES)
    assert found[0]["step"] <= max(gaps)


def test_it_does_not_depend_on_where_a_stage_was_resumed():
    whole = logged(9_000)
    for stopped in (1_999, 2_500, 6_001):
        assert logged(9_000, begun=logged(stopped)) == whole


def test_other_entries_stay():
    found = [{"step": 1, "eval_loss": 2.0}, *logged(5_000), {"step": 5_000, "train_runtime": 3.0}]
    thin_out(found, 1)
    assert found[0] == {"step": 1, "eval_loss": 2.0} and "train_runtime" in found[-1]


def test_a_stage_is_thinned_out(tmp_path, base_folder, monkeypatch):
    monkeypatch.setattr(history, "MOST_ENTRIES", 6)
    run = small_run.train(small_run.one_stage(tmp_path, base_folder, sequences=13))
    folder = run / "stage1-only" / "checkpoint-13"
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert len(log) <= 7 and log[-1]["step"] == 13
