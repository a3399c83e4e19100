"""lm-eval over our views: the same hits as our own tasks, RULER by its own generators, what is refused."""

import copy
import json
import random
import re
from functools import partial
from pathlib import Path

import pytest

from linearard.errors import DataError, RecipeError
from linearard.evaluation import EvaluationConfig, evaluate, prepare_inputs, summarise
from linearard.evaluation.passkey import FILLER

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "evaluation.md"
NOTHING = {"perplexity_windows": [], "agreement_window": 0, "passkey_lengths": []}
WORDS = sorted({word for sentence in FILLER for word in sentence.rstrip(".").split()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Task files, and the two of the page that read them."""
    tmp_path = tmp_path_factory.mktemp("tasks")
    chance = random.Random(3)
    quiz = [
        {
            "context": chance.choice(FILLER),
            "choices": [" ".join(chance.sample(WORDS, chance.randint(1, 3))) for _ in range(3)],
            "answer": chance.randrange(3),
        }
        for _ in range(23)
    ]
    words = [
        {"context": " ".join(words[:-1]), "target": words[-1]}
        for words in (sentence.rstrip(".").split() for sentence in FILLER[:9])
    ]
    for name, records in (("quiz", quiz), ("words", words)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    for name, text in re.findall(r"```yaml\n# tasks/(\w+)\.yaml\n(.*?)```", DOCS.read_text(), re.S):
        (tmp_path / f"{name}.yaml").write_text(text.replace("tasks/", f"{tmp_path}/"))
    assert {path.stem for path in tmp_path.glob("*.yaml")} == {"my_quiz", "my_words"}
    return tmp_path


@pytest.fixture(scope="module")
def measured(make_model, tokenizer, make_views, documents, folder):
    tokenizer, model = copy.deepcopy(tokenizer), make_model()
    tokenizer.eos_token = "<s>"
    config = EvaluationConfig(
        **NOTHING, tasks_dir=folder, lm_eval=["my_quiz", "my_words"], lm_eval_dir=str(folder)
    )
    return evaluate(model, tokenizer, make_views(model), documents, config, progress=False)


def test_hits_are_ours_record_by_record(measured):
    for name, view in measured["views"].items():
        ours, theirs = view["tasks"]["quiz"], view["lm_eval"]["my_quiz"]
        assert theirs["metric"] == ours["metric"] == "acc_norm"
        assert theirs["values"] == ours["answers"]["hits"] and len(theirs["values"]) == 23
        assert theirs["score"] == pytest.approx(ours["score"])
        assert theirs["further"]["acc"] == pytest.approx(ours["acc"])
        if name != "original":
            assert theirs["raw_retention"] == pytest.approx(ours["raw_retention"])
            assert theirs["raw_retention_ci95"] == pytest.approx(ours["raw_retention_ci95"])
    hits = [view["lm_eval"]["my_quiz"]["values"] for view in measured["views"].values()]
    assert hits[0] != hits[1]  # the views were entered


def test_results_stand_beside_ours(measured):
    words = measured["views"]["restored"]["lm_eval"]["my_words"]
    assert words["metric"] == "exact_match" and len(words["values"]) == 9
    labels = {row.label: row for row in summarise(measured)}
    row = labels["my_quiz (acc_norm, lm-eval)"]
    assert row.values["original"] == measured["views"]["original"]["lm_eval"]["my_quiz"]["score"]
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured


def refused(tokenizer, documents, error, **options):
    config = EvaluationConfig(**NOTHING, **options)
    with pytest.raises(error) as caught:
        prepare_inputs(tokenizer, ["original"], documents, config)
    return str(caught.value)


def test_an_unknown_task(tokenizer, documents, folder, monkeypatch):
    from lm_eval.tasks import TaskManager

    # without lm-eval's own thousands, which take seconds to list
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    own = {"lm_eval": ["my_quiz", "no_such_task"], "lm_eval_dir": str(folder)}
    assert "got no_such_task" in refused(tokenizer, documents, RecipeError, **own)


def test_a_task_without_its_file(tokenizer, documents, folder, tmp_path):
    text = (folder / "my_quiz.yaml").read_text().replace("quiz.jsonl", "missing.jsonl")
    (tmp_path / "my_quiz.yaml").write_text(text)
    own = {"lm_eval": ["my_quiz"], "lm_eval_dir": str(tmp_path)}
    line = refused(tokenizer, documents, DataError, **own)
    assert "whose data can be read: my_quiz" in line and "missing.jsonl" in line


def test_without_lm_eval_the_extra_is_named(tokenizer, documents, monkeypatch):
    monkeypatch.setattr(
        "linearard.evaluation.harness.installed.find_spec",
        lambda name: None if name == "lm_eval" else name,
    )
    line = refused(tokenizer, documents, RecipeError, lm_eval=["ruler"])
    assert "got no lm_eval" in line and 'pip install "linearard[lm-eval]"' in line


@pytest.mark.parametrize("name", ["tasks/evil.yaml", "evil.yaml", "../evil", "a b", ""])
def test_paths_are_no_names(name):
    """A path would be a file that runs code."""
    with pytest.raises(RecipeError, match="lm_eval"):
        EvaluationConfig(lm_eval=[name])
