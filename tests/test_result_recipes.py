"""Sweep files still give what their filed results were run with, whatever their bases have become since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from benchmarks.figures import RESULTS, selection_arms
from linearard.distill import ObjectiveConfig
from linearard.recipe.former_names import with_current_names
from linearard.sweep import load_sweep

SWEEPS = Path(__file__).parent.parent / "benchmarks" / "sweeps"
#: Sweep file -> group of its arms among the selection's; those before have other names for their arms.
GROUPS = {
    "selection-10": "12",
    "selection-11": "13",
    "selection-12": "14",
    "selection-13": "15",
    "selection-13-linear": "16",
    "selection-14": "17",
}
GONE = {
    "far",
    "farther",
    "together",
}  # arms of round eleven with an option that is out again (08e7119)
PATHS = ("train", "validation")  # where the text lay; "self" is no path


def comparable(part):
    """A stage or what holds stages, objectives with their defaults and without paths."""
    found = {}
    for name, value in part.items():
        if name == "objective":
            unread = {} if value.get("hidden_weight") else {"hidden_layers": None}
            found[name] = ObjectiveConfig(**value | unread)
        elif isinstance(value, dict):
            found[name] = comparable(value)
        elif name not in PATHS or value == "self":
            found[name] = value
    return found


def named(stages):
    """Stages as they were run, with today's names of their fields."""
    return with_current_names({"stages": stages})["stages"]


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(SWEEPS.parents[1])


def plain(value):
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("name", GROUPS)
def test_a_round_gives_the_arms_that_were_run(name):
    filed = {
        (arm["arm"], arm["seed"]): arm for arm in selection_arms() if arm["group"] == GROUPS[name]
    }
    jobs = {(job.arm, job.seed): job.recipe for job in load_sweep(SWEEPS / f"{name}.yaml").jobs}
    run = set(filed) & set(jobs)
    assert run == {key for key in filed if key[0] not in {"original"} | GONE}
    for key in run:
        now = comparable(plain(jobs[key].source["stages"]))
        assert now == comparable(named(filed[key]["stages"])), key
        assert plain(jobs[key].rope) == filed[key]["rope"], key


def test_the_table_has_what_its_file_gives():
    seen = 0
    for job in load_sweep(SWEEPS / "recovery.yaml").jobs:
        run = RESULTS / "h200" / "recovery" / job.arm / f"seed-{job.seed}" / "recipe.yaml"
        if not run.is_file():
            continue
        then, now = yaml.safe_load(run.read_text()), job.recipe
        stages = comparable(plain(now.source["stages"] or {}))
        assert stages == comparable(named(then.get("stages") or {})), run
        assert plain(now.rope) == then["rope"], run
        seen += 1
    assert seen >= 20
