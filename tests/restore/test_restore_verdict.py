"""A verdict names what has become worse, and nothing that chance explains."""

import pytest

from linearard.restore import judge


def view(kl, ppl, key, top1=0.9):
    shares = {"accuracy": key, "ci95": [max(0.0, key - 0.2), min(1.0, key + 0.2)], "prompts": 10}
    return {
        "agreement": {"kl": kl, "kl_ci95": [kl, kl], "top1": top1, "top1_ci95": [top1, top1]},
        "perplexity": {"2048": {"ppl": ppl, "ppl_ci95": [ppl, ppl]}},
        "passkey": {**shares, "by_length": {"2048": shares, "8192": shares}},
    }


def result(stretched, restored):
    original = view(0.0, 20.0, 1.0)
    del original["agreement"]
    return {"views": {"original": original, "stretched": stretched, "restored": restored}}


@pytest.mark.parametrize(
    ("restored", "worse"),
    [
        (view(0.02, 20.5, 1.0), []),
        (view(0.02, 20.5, 0.5), []),  # within the interval of ten prompts
        (view(0.02, 20.5, 0.3), ["pass key, 2,048 tokens", "pass key, 8,192 tokens"]),
        (view(0.12, 20.5, 1.0), ["KL to original (nats)"]),
        (view(0.02, 25.0, 1.0), ["perplexity, 2,048 tokens"]),
        (view(0.02, 20.5, 1.0, top1=0.7), ["top-1 agreement"]),
    ],
)
def test_rows_that_are_worse(restored, worse):
    verdict = judge(result(view(0.1, 24.0, 0.6, top1=0.8), restored))
    assert verdict.worse == worse
    assert verdict.good == (not worse)
    assert ("WORSE" in verdict.lines[-1]) == bool(worse)


@pytest.mark.parametrize("number", ["kl", "ppl", "top1"])
def test_what_is_no_number_is_worse(number):
    values = {"kl": 0.02, "ppl": 20.5, "key": 1.0, "top1": 0.9}
    broken = view(**values | {number: float("nan")})
    assert len(judge(result(view(0.1, 24.0, 0.6, top1=0.8), broken)).worse) == 1
    verdict = judge(result(broken, view(**values)))
    assert verdict.worse == [] and verdict.good


def test_nothing_better_is_not_good():
    same = view(0.1, 24.0, 0.6)
    verdict = judge(result(same, same))
    assert verdict.worse == verdict.better == []
    assert not verdict.good
    assert "in any row" in verdict.lines[-1]
