"""A long run watched for growth: the verdict, and a short run of it."""

import json
import sys

import pytest

from benchmarks import soak


def series(seconds, **slopes):
    """A sample a second; MiB an hour by measure, with some noise."""
    found = {"seconds": list(map(float, range(seconds))), "step": [10 * i for i in range(seconds)]}
    for name, slope in slopes.items():
        found[name] = [900 + slope * i / 3600 + 0.3 * (i % 7) for i in range(seconds)]
    return found


@pytest.mark.parametrize(
    ("slopes", "flat"),
    [
        ({"rss": 0.0, "allocated": 0.0, "folder": 0.0}, True),
        ({"rss": 15.0}, True),
        ({"rss": -200.0}, True),  # what becomes less is no leak
        ({"rss": 54.0}, False),  # 18 MiB in 20 minutes, as a log without bounds made
        ({"rss": 0.0, "allocated": 2.0}, False),
        ({"rss": 0.0, "folder": 20.0}, False),
    ],
)
def test_the_verdict(slopes, flat):
    found = soak.judge(series(1200, **slopes), 1200)
    assert found["warm_up"] == 300
    assert found["flat"] is flat
    for name, slope in slopes.items():
        assert found["measures"][name]["mib_an_hour"] == pytest.approx(slope, abs=0.7)
    assert found["steps_per_second"] == {"first": 10, "last": 10}


def test_growth_before_the_warm_up_ends_does_not_count():
    found = series(1200, rss=0.0)
    found["rss"] = [x + min(i, 300) for i, x in enumerate(found["rss"])]
    assert soak.judge(found, 1200)["flat"]
    found["rss"] = [x + min(i, 600) for i, x in enumerate(found["rss"])]
    assert not soak.judge(found, 1200)["flat"]


def test_a_log_that_fills_is_no_growth():
    """In few steps a second it fills long after a quarter of the time."""
    found = series(1200, rss=0.0)
    found["step"] = [4 * i for i in range(1200)]
    found["log"] = [min(step, 2000) / 2000 for step in found["step"]]
    assert soak.judge(found, 1200)["warm_up"] == 501 and soak.judge(found, 1200)["flat"]


def test_too_short_a_time_is_no_verdict():
    assert soak.judge(series(305, rss=0.0), 1200) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_short_run(tmp_path):
    soak.main(["--seconds", "5", "--device", "cpu", "--commit", "x", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "soak.json").read_text())
    assert result["steps"] == result["kept_step"] >= 10
    assert "flat" not in result
    assert {len(values) for values in result["series"].values()} == {len(result["series"]["rss"])}
    assert "svg" in (tmp_path / "soak.svg").read_text()
