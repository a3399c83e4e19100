"""`linearard report`: evaluations on disk as one page."""

import json

import pytest

from linearard.cli.main import main


def evaluation(kl):
    agreement = {"kl": kl, "kl_ci95": None, "top1": 0.9, "top1_ci95": None}
    return {
        "views": {"original": {}, "stretched": {}, "restored": {"agreement": agreement}},
        "meta": {
            "model": "org/model",
            "device": "cpu",
            "dtype": "float32",
            "date": "2026-01-01T00:00:00",
            "commit": None,
        },
    }


@pytest.fixture
def runs(tmp_path):
    """Three runs, with their evaluation where a run, `evaluate` and a sweep put it."""
    places = ("a/seed-0", "b/seed-0/evaluation", "c/final/evaluation")
    for index, place in enumerate(places):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "evaluation.json").write_text(json.dumps(evaluation(0.1 + index)))
    return [str(tmp_path / name) for name in ("a/seed-0", "b/seed-0", "c")]


def test_runs_side_by_side_are_named_by_what_tells_them_apart(runs, tmp_path):
    page = tmp_path / "new" / "page.html"
    assert main(["report", *runs, "--output", str(page)]) == 0
    html = page.read_text()
    assert "<h1>3 runs</h1>" in html
    for name in ("a/seed-0", "b/seed-0", f"{tmp_path.name}/c"):
        assert f'title="{name}"' in html


def test_one_run_is_its_own_report(runs, tmp_path):
    page = tmp_path / "page.html"
    (tmp_path / "a/seed-0/recipe.yaml").write_text("output_dir: of the run\n")
    assert main(["report", f"{runs[0]}/evaluation.json", "--output", str(page)]) == 0
    html = page.read_text()
    assert "<h1>org/model</h1>" in html and "of the run" in html


def test_what_cannot_be_drawn_is_refused(runs, tmp_path, refusal):
    page = tmp_path / "page.html"
    assert "a run that was evaluated" in refusal("report", str(tmp_path), "--output", str(page))
    broken = tmp_path / "broken.json"
    for content, words in (
        ("{", "valid JSON"),
        ("[]", "JSON without views or meta"),
        (json.dumps({"views": {"restored": {"agreement": {}}}, "meta": {}}), "cannot be drawn"),
    ):
        broken.write_text(content)
        assert words in refusal("report", str(broken), runs[0], "--output", str(page))
    assert not page.exists()
    page.write_text("mine")
    assert "which exists" in refusal("report", *runs, "--output", str(page))
    assert page.read_text() == "mine"
