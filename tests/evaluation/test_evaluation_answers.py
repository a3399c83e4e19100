import json
import math

import numpy as np
import pytest

from linearard.evaluation.answers import compare_answers
from linearard.evaluation.retention import task_results
from linearard.evaluation.tasks import TaskScore


def choices(seed, noise=None, count=173):
    """Records of two to four choices; those of another view with some noise."""
    draw = np.random.default_rng(seed)
    if noise is None:
        logprobs = [list(draw.normal(-9, 3, 2 + i % 3)) for i in range(count)]
    else:
        logprobs = [list(np.array(record) + draw.normal(0, 0.7, len(record))) for record in noise]
    chosen = [record.index(max(record)) for record in logprobs]
    hits = [float(c == 0) for c in chosen]
    return TaskScore("acc", hits, logprobs, chosen, 0.3, {"acc": 0.5, "acc_norm": 0.25})


def last_words(seed, count=91):
    draw = np.random.default_rng(seed)
    logprobs = [[value] for value in -draw.exponential(2.0, count)]
    hits = [float(logprob > -0.7) for (logprob,) in logprobs]
    return TaskScore("acc", hits, logprobs, [int(h) - 1 for h in hits], 0.0, {"perplexity": 7.5})


ORIGINAL = {"choices": choices(0), "words": last_words(1)}
VIEW = {"choices": choices(2, noise=ORIGINAL["choices"].logprobs), "words": last_words(3)}


def divergence(original, view):
    """Float64, from probabilities."""
    p, q = (np.exp(np.array(record, np.float64)) for record in (original, view))
    p, q = (np.append(x, 1 - x) if len(x) == 1 else x / x.sum() for x in (p, q))
    return float((p * np.log(p / q)).sum())


@pytest.mark.parametrize("task", list(ORIGINAL))
def test_answers_are_compared_record_by_record(task):
    part = compare_answers(VIEW, ORIGINAL, seed=0)[0][task]
    pairs = zip(ORIGINAL[task].logprobs, VIEW[task].logprobs, strict=True)
    kl = [divergence(*pair) for pair in pairs]
    same = np.array(ORIGINAL[task].chosen) == np.array(VIEW[task].chosen)
    assert part["same_answers"] == pytest.approx(same.mean()) and 0.3 < same.mean() < 0.95
    assert part["answer_kl"] == pytest.approx(np.mean(kl), rel=1e-9)
    for values, name in ((same, "same_answers"), (kl, "answer_kl")):
        low, high = part[f"{name}_ci95"]
        assert low < part[name] < high
        width = 2 * 1.96 * np.std(values) / math.sqrt(len(values))
        assert high - low == pytest.approx(width, rel=0.15)


def test_the_average_is_over_tasks():
    parts, average = compare_answers(VIEW, ORIGINAL, seed=0)
    for name in ("same_answers", "answer_kl"):
        assert average[name] == pytest.approx(np.mean([part[name] for part in parts.values()]))
        low, high = average[f"{name}_ci95"]
        assert low < average[name] < high


def test_a_model_answers_as_itself():
    parts, average = compare_answers(ORIGINAL, ORIGINAL, seed=0)
    for part in (*parts.values(), average):
        assert part["same_answers"] == 1 and part["answer_kl"] == 0
        assert part["same_answers_ci95"] is None and part["answer_kl_ci95"] is None


def test_a_certain_word_stays_finite():
    certain, unsure = (
        {"word": TaskScore("acc", [1.0] * 3, [[value]] * 3, [0] * 3, 0.0, {})}
        for value in (0.0, -0.5)
    )
    assert compare_answers(unsure, certain, 0)[1]["answer_kl"] == pytest.approx(0.5)
    kl = compare_answers(certain, unsure, 0)[1]["answer_kl"]
    assert 10 < kl < 15  # all but nothing is left for what the original gives 39 %


def test_right_and_wrong_are_not_asked_for():
    """Two views of the same score can have no answer in common."""
    other = {"easy": TaskScore("acc", [1.0, 0.0], [[-1, -2], [-2, -1]], [0, 1], 0.5, {})}
    original = {"easy": TaskScore("acc", [0.0, 1.0], [[-2, -1], [-1, -2]], [1, 0], 0.5, {})}
    part = task_results({"original": original, "view": other}, "original", 0)["view"]
    assert part["task_average"]["raw_retention"] == 1
    assert part["task_average"]["same_answers"] == part["tasks"]["easy"]["same_answers"] == 0


def test_what_a_file_holds_gives_the_same_comparison():
    together = task_results({"original": ORIGINAL, "view": VIEW}, "original", 5)["view"]
    apart = {
        view: {
            task: TaskScore.read(json.loads(json.dumps(score.describe(5))))
            for task, score in scores.items()
        }
        for view, scores in {"original": ORIGINAL, "view": VIEW}.items()
    }
    again = task_results(apart, "original", 5)["view"]
    for task, part in together["tasks"].items():
        for name, value in part.items():
            if name != "answers":
                assert again["tasks"][task][name] == value, name
    assert again["task_average"] == together["task_average"]


def test_a_null_in_a_file_is_no_number():
    part = ORIGINAL["words"].describe(0)
    part["answers"] = {**part["answers"], "logprobs": [[None], *part["answers"]["logprobs"][1:]]}
    score = {"words": TaskScore.read(part)}
    compared = compare_answers(score, {"words": ORIGINAL["words"]}, 0)[1]
    assert math.isnan(compared["answer_kl"]) and compared["answer_kl_ci95"] is None
    assert compared["same_answers"] == 1
