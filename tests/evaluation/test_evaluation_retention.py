import math

import numpy as np
import pytest

from linearard.evaluation.retention import retention, task_results
from linearard.evaluation.tasks import TaskScore

RECORDS = {"easy": 301, "hard": 170}
CHANCE = {"easy": 0.25, "hard": 0.5}


def score_of(hits, chance):
    """A score with these hits, of yes-or-no records."""
    logprobs = [[-0.5, -1.0] if hit else [-1.5, -1.0] for hit in hits]
    return TaskScore("acc", hits, logprobs, [int(hit == 0) for hit in hits], chance, {})


def scores(seed, share, flips=None):
    """Hits of both tasks: drawn anew, or those of another view with a few flipped."""
    draw = np.random.default_rng(seed)
    made = {}
    for task, count in RECORDS.items():
        hits = (draw.random(count) < share).astype(float)
        if flips is not None:
            hits = flips[task].hits - (np.array(flips[task].hits) * (draw.random(count) < share))
        made[task] = score_of(list(map(float, hits)), CHANCE[task])
    return made


ORIGINAL = scores(0, 0.8)
VIEWS = {"original": ORIGINAL, "apart": scores(1, 0.7), "close": scores(2, 0.1, flips=ORIGINAL)}


@pytest.fixture(scope="module")
def results():
    return task_results(VIEWS, "original", seed=0)


def ratio_spread(view, task, chance):
    """Standard error of a ratio of paired means, by linearisation; float64."""
    x, y = (np.array(VIEWS[name][task].hits) - chance for name in (view, "original"))
    ratio = x.mean() / y.mean()
    return (x - ratio * y).std() / y.mean() / math.sqrt(len(x))


@pytest.mark.parametrize("view", ["apart", "close"])
@pytest.mark.parametrize("name", ["retention", "raw_retention"])
def test_intervals_have_the_width_of_a_paired_ratio(results, view, name):
    for task, part in results[view]["tasks"].items():
        chance = part["chance"] if name == "retention" else 0.0
        low, high = part[f"{name}_ci95"]
        assert low < part[name] < high
        width = 2 * 1.96 * ratio_spread(view, task, chance)
        # 1000 resamples know the ends to about 4 % of the width each; a ratio is a little skewed.
        assert high - low == pytest.approx(width, rel=0.15)


def test_pairing_makes_the_interval_of_a_close_view_narrow(results):
    widths = {}
    for view in ("apart", "close"):
        low, high = results[view]["task_average"]["raw_retention_ci95"]
        widths[view] = high - low
    assert widths["close"] < 0.6 * widths["apart"]


def test_the_average_is_that_of_the_tasks(results):
    for view, part in results.items():
        average, tasks = part["task_average"], part["tasks"].values()
        assert average["score"] == pytest.approx(sum(task["score"] for task in tasks) / 2)
        assert average["chance"] == pytest.approx(0.375) and average["tasks"] == 2
        original = results["original"]["task_average"]["score"]
        assert average["raw_retention"] == pytest.approx(average["score"] / original)
        assert average["retention"] == pytest.approx(
            (average["score"] - 0.375) / (original - 0.375)
        )
        # Two independent tasks: variances add.
        errors = [np.std(VIEWS[view][task].hits) / math.sqrt(n) for task, n in RECORDS.items()]
        low, high = average["ci95"]
        assert high - low == pytest.approx(2 * 1.96 * math.hypot(*errors) / 2, rel=0.15)


def test_the_original_keeps_all_of_itself(results):
    for part in (*results["original"]["tasks"].values(), results["original"]["task_average"]):
        assert part["retention"] == part["raw_retention"] == 1
        assert part["retention_ci95"] is None and part["raw_retention_ci95"] is None


def test_there_is_no_bound_where_the_original_may_be_at_chance():
    weak = {"hard": score_of([1.0, 0.0] * 40 + [1.0] * 4, 0.5)}
    part = task_results({"original": weak, "view": weak}, "original", 0)["view"]["tasks"]["hard"]
    assert part["retention"] == pytest.approx(1) and part["retention_ci95"] is None
    half = {"hard": score_of([1.0, 0.0] * 42, 0.5)}
    part = task_results({"original": half, "view": weak}, "original", 0)["view"]["tasks"]["hard"]
    assert part["retention"] is None and part["raw_retention"] == pytest.approx(44 / 42)


def test_without_the_original_or_without_tasks_nothing_is_kept():
    part = task_results({"close": VIEWS["close"]}, "original", 0)["close"]
    assert set(part["task_average"]) == {"score", "ci95", "chance", "tasks"}
    assert not {"retention", "same_answers"} & part["tasks"]["easy"].keys()
    assert task_results({"original": {}}, "original", 0) == {}


def test_retention_is_above_chance():
    assert retention(0.4, original=0.5, chance=0.25) == pytest.approx(0.6)
    assert retention(0.2, original=0.5, chance=0.25) < 0
    assert retention(0.5, original=0.25, chance=0.25) is None
