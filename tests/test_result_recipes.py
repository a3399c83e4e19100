"""Closed rounds hold every arm that a figure is claimed of; the table's sweep file gives what was run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.figures import RESULTS, selection_arms
from linearard.distill import ObjectiveConfig
from linearard.recipe.former_names import with_current_names
from linearard.sweep import load_sweep

CHECKOUT = Path(__file__).parents[1]
ROUNDS = CHECKOUT / "research" / "rounds"
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


def plain(value):
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("file", sorted(ROUNDS.iterdir()), ids=lambda path: path.stem)
def test_a_round_holds_the_arms_that_were_run(file):
    filed = {
        arm["recipe"]
        for arm in selection_arms()
        if arm["group"] == str(int(file.stem)) and "recipe" in arm
    }
    arms = {f"{file.stem}:{job.arm}" for job in load_sweep(file).jobs}
    text = file.read_text()
    out_again = {name for name in filed - arms if f"# {name.partition(':')[2]}: not" in text}
    assert arms and arms == filed - out_again


def test_every_arm_has_a_round():
    rounds = {int(path.stem) for path in ROUNDS.iterdir()}
    assert {int(arm["group"]) for arm in selection_arms()} == rounds == set(range(1, 18))


def test_no_round_reads_text_that_moves():
    for path in ROUNDS.iterdir():
        assert "src/linearard" not in path.read_text()


def test_the_table_has_what_its_file_gives(monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    filed = json.loads((RESULTS / "h200" / "recovery.json").read_text())["arms"]
    seen = 0
    for job in load_sweep(CHECKOUT / "benchmarks" / "sweeps" / "recovery.yaml").jobs:
        then, now = filed.get(job.arm, {}).get("recipe"), job.recipe
        if not then:
            continue
        stages = with_current_names({"stages": then.get("stages") or {}})["stages"]
        assert comparable(plain(now.source["stages"] or {})) == comparable(stages), job.arm
        assert plain(now.rope) == then["rope"], job.arm
        seen += 1
    assert seen >= 20
