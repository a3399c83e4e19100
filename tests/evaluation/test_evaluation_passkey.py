import pytest

from linearard.errors import DataError
from linearard.evaluation.passkey import FILLER, passkey_prompts
from linearard.evaluation.prompts import score_prompts
from linearard.model import ChunkedCausalLM

LENGTHS, DEPTHS = [401, 900, 2048], [0.0, 0.3, 0.5, 1.0]
USABLE = ["byte level", "start token", "merges over spaces", "word level"]


def squeeze(text):
    return "".join(text.split())


@pytest.mark.parametrize("name", USABLE)
def test_the_needle_is_in_every_prompt_and_no_prompt_is_too_long(other_tokenizers, name):
    tokenizer = other_tokenizers[name]
    prompts = passkey_prompts(tokenizer, LENGTHS, DEPTHS, repeats=2, seed=3)
    assert len(prompts) == len(LENGTHS) * len(DEPTHS) * 2
    assert len({prompt.answer for prompt in prompts}) == len(prompts)
    longest = max(len(tokenizer(f" {line}").input_ids) for line in FILLER)
    for prompt in prompts:
        ids, start = prompt.continuation.ids, prompt.continuation.start
        assert prompt.length - longest <= len(ids) <= prompt.length  # full, and not over
        question, answer = tokenizer.decode(ids[:start]), tokenizer.decode(ids[start:])
        assert squeeze(question).count(f"Thepasskeyis{prompt.answer}.Rememberit.") == 1
        assert squeeze(question + answer).endswith(f"Whatisthepasskey?Thepasskeyis{prompt.answer}")
        assert squeeze(answer).endswith(prompt.answer)  # a merged "is " may come before it


def test_the_needle_stands_at_its_depth(tokenizer):
    for prompt in passkey_prompts(tokenizer, [2048], DEPTHS, repeats=1, seed=0):
        text = tokenizer.decode(prompt.continuation.ids)
        assert text.index(prompt.answer) / len(text) == pytest.approx(prompt.depth, abs=0.09)


def test_the_start_token_comes_first_where_the_tokenizer_has_one(other_tokenizers):
    for name, expected in (("start token", True), ("byte level", False)):
        (prompt,) = passkey_prompts(other_tokenizers[name], [500], [0.5], repeats=1, seed=0)
        assert (prompt.continuation.ids[0] == 0) is expected


def test_a_seed_gives_the_same_prompts_whatever_else_is_asked(tokenizer):
    (alone,) = passkey_prompts(tokenizer, [700], [0.5], repeats=1, seed=5)
    assert alone in passkey_prompts(tokenizer, [400, 700], [0.0, 0.5], repeats=2, seed=5)
    assert alone not in passkey_prompts(tokenizer, [700], [0.5], repeats=1, seed=6)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_model_that_is_always_right_or_wrong(tokenizer, oracle, batch_size):
    model, expected = oracle
    prompts = passkey_prompts(tokenizer, [400, 500], [0.0, 1.0], repeats=2, seed=0)
    got = score_prompts(ChunkedCausalLM(model), prompts, batch_size=batch_size, seed=0)
    assert got["accuracy"] == expected and got["prompts"] == 8
    assert got["ci95"] is None  # eight equal outcomes: a bootstrap would claim certainty
    assert [(c["length"], c["depth"]) for c in got["cells"]] == [
        (400, 0.0),
        (400, 1.0),
        (500, 0.0),
        (500, 1.0),
    ]
    assert all(c["accuracy"] == expected and c["prompts"] == 2 for c in got["cells"])


def test_impossible_prompts_are_refused(other_tokenizers):
    with pytest.raises(DataError, match=r"at least \d+ tokens, got 20"):
        passkey_prompts(other_tokenizers["byte level"], [20], [0.5], repeats=1, seed=0)
    with pytest.raises(DataError, match="loses it"):
        passkey_prompts(other_tokenizers["without digits"], [300], [0.5], repeats=1, seed=0)


@pytest.mark.parametrize("name", ["byte level", "start token", "word level"])
def test_pieces_give_the_tokens_of_the_whole_text(other_tokenizers, name):
    """These tokenizers merge nothing over the end of a sentence, as those of models do."""
    tokenizer = other_tokenizers[name]
    start = [0] if name == "start token" else []
    for prompt in passkey_prompts(tokenizer, [401, 900], [0.0, 0.3, 1.0], repeats=1, seed=3):
        text = tokenizer.decode(prompt.continuation.ids[len(start) :])
        whole = tokenizer(text, add_special_tokens=False).input_ids
        assert prompt.continuation.ids == start + whole
