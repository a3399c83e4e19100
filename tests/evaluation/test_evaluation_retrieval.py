import random
import re

import pytest
import torch

from linearard.errors import DataError
from linearard.evaluation.passkey import FILLER
from linearard.evaluation.puzzles import PUZZLES
from linearard.evaluation.retrieval import retrieval_prompts, score_retrieval
from linearard.model import ChunkedCausalLM

KINDS, LENGTHS, DEPTHS = list(PUZZLES), [701, 1500], [0.0, 0.4, 1.0]
USABLE = ["byte level", "start token"]


def prose(count, seed=0):
    """Sentences no two of which are alike."""
    chance = random.Random(seed)
    return " ".join(f"{chance.choice(FILLER)[:-1]}, {number}." for number in range(count))


@pytest.fixture
def encoded(other_tokenizers):
    """Documents of a tokenizer, and their text."""

    def encode(name):
        texts = [prose(400), prose(90, seed=1)]
        ids = [torch.tensor(other_tokenizers[name](text).input_ids) for text in texts]
        return other_tokenizers[name], ids, "".join(texts)

    return encode


def prompts_of(
    tokenizer, documents, kinds=KINDS, lengths=LENGTHS, depths=DEPTHS, repeats=2, seed=0
):
    return retrieval_prompts(tokenizer, documents, kinds, lengths, depths, repeats, seed)


def solve(kind, text, question):
    """Answer a question from the text alone: written from what the sentences say."""
    facts = re.findall(r"The (?:code|password) of the (\w+) is (\w+)\.", text)
    if kind == "variables":
        held = {}
        for name, source in re.findall(r"Variable (\w+) is set to (?:that of )?(\w+)\.", text):
            held[name] = held.get(source, source)
        return held[re.search(r"variable (\w+) have", question)[1]]
    if kind == "multivalue":
        owner = re.search(r"codes of the (\w+),", question)[1]
        return ", ".join(value for name, value in facts if name == owner)
    asked = re.findall(r"the (\w+)(?:,| and|\?)", question)
    return ", ".join(dict(facts)[name] for name in asked if name in dict(facts))


@pytest.mark.parametrize("name", USABLE)
def test_every_question_can_be_answered_from_its_own_tokens(encoded, name):
    tokenizer, documents, _ = encoded(name)
    for kind, prompts in prompts_of(tokenizer, documents).items():
        assert len(prompts) == len(LENGTHS) * len(DEPTHS) * 2
        assert len({tuple(prompt.continuation.ids) for prompt in prompts}) == len(prompts)
        for prompt in prompts:
            ids, start = prompt.continuation.ids, prompt.continuation.start
            before, answer = tokenizer.decode(ids[:start]), tokenizer.decode(ids[start:])
            text, question = re.fullmatch(r"(.*\.) ?(Wh[^.]*)", before, re.DOTALL).groups()
            assert solve(kind, text, question) == prompt.answer
            assert answer.strip().endswith(prompt.answer)


@pytest.mark.parametrize("name", USABLE)
def test_prompts_are_full_and_their_haystack_is_the_documents_own(encoded, name):
    tokenizer, documents, text = encoded(name)
    longest = max(len(tokenizer(f"{line}, 399").input_ids) for line in FILLER)
    for prompts in prompts_of(tokenizer, documents).values():
        for prompt in prompts:
            assert prompt.length - longest <= len(prompt.continuation.ids) <= prompt.length
            ids = prompt.continuation.ids[: prompt.continuation.start]
            plain = re.sub(
                r" (The (code|password) of the|Variable) [^.]*\.", "", tokenizer.decode(ids)
            )
            hay = re.search(r"(?:in it|of them)\.(.*\.) ?Wh", plain, re.DOTALL)[1]
            assert len(hay) > 200 and hay in text


def test_an_asked_for_needle_stands_at_its_depth_behind_a_sentence(encoded):
    tokenizer, documents, _ = encoded("byte level")
    for kind in ("single", "word", "multikey"):
        for prompt in prompts_of(tokenizer, documents, [kind], [1500])[kind]:
            text = tokenizer.decode(prompt.continuation.ids[: prompt.continuation.start])
            needle = re.search(rf"(.) The (code|password) of the \w+ is {prompt.answer}\.", text)
            assert needle[1] == "."
            assert needle.start() / len(text) == pytest.approx(prompt.depth, abs=0.13)


def test_further_needles_differ_from_the_one_that_is_asked_for(encoded):
    tokenizer, documents, _ = encoded("byte level")
    for prompt in prompts_of(tokenizer, documents, ["multikey"])["multikey"]:
        facts = re.findall(
            r"code of the (\w+) is (\d+)\.", tokenizer.decode(prompt.continuation.ids)
        )
        assert len(facts) == len(dict(facts)) == 4
        assert [value for _, value in facts].count(prompt.answer) == 1


def test_a_seed_gives_the_same_prompts_whatever_else_is_asked(encoded):
    tokenizer, documents, _ = encoded("byte level")
    (alone,) = prompts_of(tokenizer, documents, ["word"], [900], [0.4], 1, 5)["word"]
    assert alone in prompts_of(tokenizer, documents, KINDS, [700, 900], [0, 0.4], 2, 5)["word"]
    assert alone not in prompts_of(tokenizer, documents, ["word"], [900], [0.4], 2, 6)["word"]


def test_text_without_punctuation_takes_a_needle_anywhere(tokenizer):
    documents = [torch.tensor(tokenizer(prose(100).replace(".", "").replace(",", "")).input_ids)]
    prompts = prompts_of(tokenizer, documents, ["single"], [801], [0.5], 3)["single"]
    for prompt in prompts:
        text = tokenizer.decode(prompt.continuation.ids)
        assert text.index("The code of the") / len(text) == pytest.approx(0.5, abs=0.05)
        assert len(prompt.continuation.ids) == 801


def test_scores_of_a_model_that_is_always_right_or_wrong(encoded, oracle):
    model, expected = oracle
    tokenizer, documents, _ = encoded("byte level")
    prompts = prompts_of(tokenizer, documents, ["single", "variables"], [600, 700], [0.0, 1.0])
    got = score_retrieval(ChunkedCausalLM(model), prompts, batch_size=3, seed=0)
    assert got["accuracy"] == expected and got["prompts"] == 16 and got["ci95"] is None
    assert list(got["tasks"]) == ["single", "variables"]
    assert {n: part["prompts"] for n, part in got["by_length"].items()} == {"600": 8, "700": 8}
    for task in got["tasks"].values():
        assert {n: part["accuracy"] for n, part in task["by_length"].items()} == {
            "600": expected,
            "700": expected,
        }
        assert [(c["length"], c["depth"], c["prompts"]) for c in task["cells"]] == [
            (600, 0.0, 2),
            (600, 1.0, 2),
            (700, 0.0, 2),
            (700, 1.0, 2),
        ]


def test_impossible_prompts_are_refused(encoded, other_tokenizers):
    tokenizer, documents, _ = encoded("byte level")
    with pytest.raises(DataError, match=r"retrieval length of at least \d+ tokens, got 40"):
        prompts_of(tokenizer, documents, lengths=[40])
    with pytest.raises(DataError, match="tokens together, to hide something in"):
        prompts_of(tokenizer, documents, lengths=[200_000])
    with pytest.raises(DataError, match=r"loses it. Switch .* retrieval_lengths: \[\]"):
        prompts_of(other_tokenizers["word level"], [torch.arange(20).repeat(50)], lengths=[300])


def test_nothing_is_asked_for():
    assert prompts_of(None, [], lengths=[]) == {}
    assert prompts_of(None, [], kinds=[]) == {}
