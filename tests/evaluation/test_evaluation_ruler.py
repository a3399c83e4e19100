"""RULER by lm-eval's own generators and scores, over our views and our cached generation."""

import copy
import random

import pytest
import torch

from linearard.errors import DataError
from linearard.evaluation import EvaluationConfig, evaluate, summarise

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
pytest.importorskip("nltk", reason="the extra lm-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

from linearard.evaluation.harness import ask, ruler_tasks  # noqa: E402
from linearard.evaluation.harness.ruler import RULER_TASKS, _Counter, ruler_docs, without_downloads  # noqa: E402
from linearard.evaluation.harness.tasks import ruler_docs_of  # noqa: E402

NOTHING = {"perplexity_windows": [], "agreement_window": 0, "passkey_lengths": []}
LENGTH, LONGER = 3000, 8000


@pytest.fixture(scope="module", autouse=True)
def fewer_words():
    """lm-eval writes down every pair of an adjective and a noun when it is imported: 1 GB of them."""
    import wonderwords

    class Fewer(wonderwords.RandomWord):
        def __init__(self):
            super().__init__()
            self._categories = {name: words[:300] for name, words in self._categories.items()}

    with pytest.MonkeyPatch.context() as patch, without_downloads():
        patch.setattr(wonderwords, "RandomWord", Fewer)
        from lm_eval.tasks.ruler import cwe_utils, prepare_niah
    assert len(prepare_niah.WORDS) <= 300**2 and len(cwe_utils.WORDS) <= 900


@pytest.fixture(scope="module")
def docs(tokenizer, fewer_words):
    return ruler_docs_of(tokenizer, [LENGTH, LONGER], 2, [0, 5])


def test_every_prompt_fits_and_holds_its_answer(docs, tokenizer):
    assert docs.keys() == RULER_TASKS.keys()
    for task, records in docs.items():
        assert len(records) == 8
        assert [r["max_length"] for r in records[:4]] == [LENGTH] * 2 + [LONGER] * 2
        for record in records:
            prompt = f"{record['input']} {record['gen_prefix']}"
            tokens = len(tokenizer(prompt).input_ids)
            least = 100 if task == "ruler_cwe" else record["max_length"] / 3
            assert least < tokens <= record["max_length"], task
            assert record["outputs"] and all(text in prompt for text in record["outputs"]), task
        assert len({record["input"] for record in records}) == 8


def test_seeds_decide_and_nothing_else_is_touched(docs, tokenizer):
    random.seed(11)
    before = random.getstate()
    again = ruler_docs("ruler_vt", tokenizer, [LENGTH], 2, 5)
    assert random.getstate() == before
    assert again == [d for d in docs["ruler_vt"] if d["seed"] == 5 and d["max_length"] == LENGTH]


@pytest.mark.parametrize("task", RULER_TASKS)
def test_counting_by_words_makes_what_the_tokenizer_makes(task, docs, tokenizer, monkeypatch):
    """The same samples as lm-eval's generators make with the tokenizer itself."""
    assert _Counter(tokenizer).by_words
    monkeypatch.setattr(_Counter, "_count", _Counter._whole)
    assert ruler_docs(task, tokenizer, [LENGTH], 2, 0) == docs[task][:2]


def test_a_tokenizer_that_merges_over_spaces_is_measured_itself(other_tokenizers):
    odd = other_tokenizers["merges over spaces"]
    for doc in ruler_docs("niah_single_1", odd, [LENGTH], 2, 0):
        assert len(odd(doc["input"]).input_ids) <= LENGTH


@pytest.mark.parametrize(
    ("task", "length"),
    [("ruler_vt", 600), ("ruler_cwe", 511), ("ruler_cwe", 4111)],
)
def test_lengths_without_room_end(task, length, tokenizer):
    """Two of the generators would try for ever."""
    with pytest.raises(DataError, match=rf"samples of {task} have room"):
        ruler_docs(task, tokenizer, [length], 1, 0)


def test_scores_are_lm_evals(docs):
    """Who answers is right; who answers half of it has a half; upper case counts."""
    from lm_eval.api.model import LM

    class Knows(LM):
        loglikelihood = loglikelihood_rolling = None

        def generate_until(self, requests):
            answers = [request.doc["outputs"] for request in requests]
            return [" ".join(a[: max(1, len(a) // 2)]).upper() for a in answers]

    scores = ask(Knows(), ruler_tasks(docs, chat=False))
    assert list(scores) == list(RULER_TASKS)
    expected = {"ruler_vt": 2 / 5, "ruler_cwe": 1 / 2, "ruler_fwe": 1 / 3}
    for task, score in scores.items():
        assert score.values == pytest.approx([expected.get(task, 1.0)] * 8)
        assert score.lengths == [d["max_length"] for d in docs[task]]
        assert score.seeds == [d["seed"] for d in docs[task]]


def test_all_views_are_asked(model, tokenizer, make_views, documents):
    config = EvaluationConfig(
        **NOTHING,
        lm_eval=["ruler"],
        ruler_lengths=[1600],
        ruler_samples=1,
        ruler_seeds=[0, 3],
        views=["original", "restored"],
    )
    # A token that is never said, so that every answer has its full length.
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token_id = None
    result = evaluate(model, tokenizer, make_views(model), documents, config, progress=False)
    for view in result["views"].values():
        ruler = view["ruler"]
        assert ruler["prompts"] == 12 and ruler["by_length"]["1600"]["prompts"] == 12
        assert ruler["by_seed"].keys() == {"0", "3"} and ruler["tasks"].keys() == RULER_TASKS.keys()
        assert len(ruler["tasks"]["ruler_cwe"]["values"]) == 2
    assert "RULER, six tasks" in {row.label for row in summarise(result)}
    assert torch.is_grad_enabled()
