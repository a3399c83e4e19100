"""`linearard evaluate --fail-below` and `--lm-eval`, through the real command line."""

import json
import re
import shlex
from pathlib import Path

import pytest

import small_run
from linearard.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "evaluation.md"
QUIZ = [
    {"context": f"the {word}", "choices": ["came", "saw a star", "went"], "answer": index % 3}
    for index, word in enumerate(("ship", "sea", "wind", "sail", "captain", "night", "star"))
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "quiz.jsonl").write_text("\n".join(map(json.dumps, QUIZ)))
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


def test_the_commands_of_the_page(trained, tasks, tmp_path, monkeypatch, capsys):
    """Its two task files and the commands that ask them, as they stand there."""
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    monkeypatch.chdir(tmp_path)
    for folder in ("runs", "tasks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "runs/x").symlink_to(trained)
    (tmp_path / "quiz").symlink_to(tasks)
    (tmp_path / "tasks/quiz.jsonl").write_text((tasks / "quiz.jsonl").read_text())
    words = [{"context": "the captain saw a", "target": "star"}, {"context": "a", "target": "b"}]
    (tmp_path / "tasks/words.jsonl").write_text("\n".join(map(json.dumps, words)))
    page = PAGE.read_text().replace("\\\n", " ")  # long commands have several lines
    for name, text in re.findall(r"```yaml\n# (tasks/\w+\.yaml)\n(.*?)```", page, re.S):
        (tmp_path / name).write_text(text)
    lines = re.findall(r"^linearard evaluate (.* --evaluation.lm_eval_dir tasks/.*)$", page, re.M)
    config = json.loads(small_run.EVALUATION) | {"tasks_dir": "quiz/"}
    small = ["--evaluation", json.dumps(config), "--output-dir", "out", "--overwrite", "--quiet"]
    kept = []
    for line in lines:
        capsys.readouterr()
        code = main(["evaluate", *small, *shlex.split(line)])
        views = json.loads((tmp_path / "out/evaluation.json").read_text())["views"]
        asked = views["restored"]["lm_eval"]
        kept.append(asked["my_quiz"]["score"] / views["original"]["lm_eval"]["my_quiz"]["score"])
        limited = "--fail-below" in line
        assert code == (3 if limited and kept[-1] < 0.98 else 0)
        assert ("failed: lm_eval_kept" in capsys.readouterr().err) == (code == 3)
        assert asked.keys() == ({"my_quiz"} if limited else {"my_quiz", "my_words"})
    assert len(lines) == 2 and kept[0] == kept[1]
    for view in views.values():
        # bytes, and a token before each text: the same tokens on both ways
        ours = view["tasks"]["quiz"]
        assert view["lm_eval"]["my_quiz"]["further"]["acc"] == pytest.approx(ours["acc"])
        assert len(view["lm_eval"]["my_quiz"]["values"]) == len(QUIZ)
