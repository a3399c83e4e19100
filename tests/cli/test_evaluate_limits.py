"""`linearard evaluate --fail-below` and `--lm-eval`, through the real command line."""

import json

import pytest

import small_run
from linearard.cli.main import main

QUIZ = [
    {"context": f"the {word}", "choices": ["came", "saw a star", "went"], "answer": index % 3}
    for index, word in enumerate(("ship", "sea", "wind", "sail", "captain", "night", "star"))
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "quiz.jsonl").write_text("\n".join(map(json.dumps, QUIZ)))
    (folder / "own.yaml").write_text(
        "task: own\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        f"dataset_kwargs: {{data_files: {{test: {folder}/quiz.jsonl}}}}\n"
        'doc_to_text: "{{context}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
    )
    return folder


@pytest.fixture
def evaluate(trained, tasks, tmp_path):
    """The exit code of an evaluation with small windows and the task files."""
    config = json.loads(small_run.EVALUATION) | {"tasks_dir": str(tasks)}

    def run(*words):
        out = ["--output-dir", str(tmp_path / "out"), "--overwrite", "--quiet"]
        return main(["evaluate", str(trained), "--evaluation", json.dumps(config), *out, *words])

    return run


def test_a_row_below_its_limit_is_named(evaluate, tmp_path, capsys):
    assert evaluate("--fail-below", "top1=0,tasks_kept=0", "--fail-below", "quiz=0") == 0
    assert "failed" not in capsys.readouterr().err
    assert evaluate("--fail-below", "top1=1.5", "--fail-below", "tasks_kept=0,quiz=2") == 3
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())["views"]["restored"]
    top1, score = result["agreement"]["top1"], result["tasks"]["quiz"]["score"]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed")]
    assert lines == [
        f"failed: top1 (top-1 agreement): {top1:.4g}, below 1.5",
        f"failed: quiz (quiz): {score:.4g}, below 2",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--fail-below", "tasks_kept"], "--fail-below NAME=VALUE"),
        (["--fail-below", "tasks_kept=much"], "--fail-below NAME=VALUE"),
        (["--fail-below", "tasks_kept=nan"], "--fail-below NAME=VALUE"),
        (["--fail-below", "hellaswag=.3"], "a name that --fail-below knows"),
        (["--fail-below", "ruler=.3"], "an evaluation that measures RULER"),
        (["--fail-below", "top1=.3", "--evaluation.views", "[original]"], "with the views"),
        (["--lm-eval", "tasks/evil.yaml"], "a task's name, which is no path"),
    ],
)
def test_what_will_not_be_measured_is_refused(words, expected, trained, tasks, refusal, no_model):
    line = refusal("evaluate", str(trained), "--evaluation.tasks_dir", str(tasks), *words)
    assert expected in line


def test_tasks_of_lm_eval(evaluate, tasks, tmp_path):
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    own = ["--lm-eval", "own", "--evaluation.lm_eval_dir", str(tasks)]
    assert evaluate(*own, "--fail-below", "own=0,lm_eval_kept=0") == 0
    views = json.loads((tmp_path / "out" / "evaluation.json").read_text())["views"]
    for view in views.values():
        # bytes, and a token before each text: the same tokens on both ways
        assert view["lm_eval"]["own"]["further"]["acc"] == pytest.approx(
            view["tasks"]["quiz"]["acc"]
        )
        assert len(view["lm_eval"]["own"]["values"]) == len(QUIZ)
