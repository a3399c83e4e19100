import random

import pytest
import torch

import tiny
from linearard.errors import DataError
from linearard.evaluation.generation import (
    ends_in_loop,
    generate,
    generation_prompts,
    repetition,
    score_generation,
)
from linearard.model import ChunkedCausalLM

PERIODS = [1, 2, 5, 21, 22, 63, 64]


def fresh(count, seed=0):
    """Tokens without any repetition."""
    return random.Random(seed).sample(range(1000, 9999), count)


def loop(period, tokens, before=100):
    """Fresh text that ends in `tokens` tokens of a loop."""
    text = fresh(before + period)
    return text[:before] + [text[before + i % period] for i in range(tokens)]


@pytest.mark.parametrize("period", PERIODS)
def test_a_loop_is_three_periods_and_64_tokens_to_the_very_end(period):
    least = max(3 * period, 64)
    assert ends_in_loop(loop(period, least))
    assert ends_in_loop(loop(period, least, before=0))  # the whole text
    assert ends_in_loop(loop(period, least + 7))  # in the middle of a period
    assert not ends_in_loop(loop(period, least - 1))
    assert not ends_in_loop([*loop(period, least), 5])  # it got out of it
    broken = loop(period, least)
    broken[-(least // 2)] = 5
    assert not ends_in_loop(broken)


def test_what_is_no_loop():
    assert not ends_in_loop(fresh(256))
    assert not ends_in_loop(loop(65, 3 * 65))  # too long a period
    assert not ends_in_loop([7] * 63)
    assert not ends_in_loop([])


def test_repetition_of_texts_made_by_hand():
    once, row = fresh(64), fresh(64, seed=1)
    outputs = torch.tensor([once, once, row, [3] * 64, [3, 4] * 32])
    got = repetition(outputs, [row[50], None], seed=0)
    # 61 4-grams each; of the last two rows 1 and 2 are different.
    assert got["repeated_4grams"] == pytest.approx((0 + 0 + 0 + 60 / 61 + 59 / 61) / 5)
    assert got["distinct_4"] == pytest.approx((61 + 0 + 61 + 1 + 2) / (5 * 61))
    assert got["loops"] == 2 / 5 and got["ended"] == 1 / 5
    assert (got["outputs"], got["tokens"]) == (5, 64)
    for name in ("repeated_4grams", "distinct_4", "loops"):
        low, high = got[f"{name}_ci95"]
        assert 0 <= low < got[name] < high <= 1


def test_equal_outputs_give_no_interval():
    got = repetition(torch.tensor([[3] * 64] * 4), [], seed=0)
    assert got["loops"] == 1 and got["loops_ci95"] is None and got["repeated_4grams_ci95"] is None


def step_by_step(model, prompts, tokens):
    """Greedy decoding without a cache, in float64, one prompt at a time."""
    model.double()
    rows = []
    for row in prompts.tolist():
        for _ in range(tokens):
            logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1]
            row = [*row, logits.argmax().item()]
        rows.append(row[prompts.shape[1] :])
    model.float()
    return torch.tensor(rows)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["lora", "direct"])
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_every_view_generates_its_own_greedy_text(architecture, kind):
    restorable = tiny.tiny_restorable(architecture, kind=kind)
    tiny.perturb_adapter(restorable)
    lm, prompts, seen = ChunkedCausalLM(restorable.model), tiny.tokens(3, 11), []
    for view in restorable.views().values():
        with view():
            got = generate(lm, prompts, 23)
            logits = restorable.model(torch.cat([prompts, got], 1), use_cache=False).logits
        assert torch.equal(logits[:, 10:-1].argmax(-1), got)
        seen.append(got)
    assert not any(torch.equal(seen[i], seen[j]) for i in range(3) for j in range(i))


@torch.no_grad()
def test_the_models_own_generation_settings_are_set_aside_and_left_alone(llama):
    lm, prompts = ChunkedCausalLM(llama), tiny.tokens(2, 7)
    expected = step_by_step(llama, prompts, 12)
    settings = llama.generation_config
    settings.repetition_penalty, settings.do_sample, settings.temperature = 5.0, True, 9.0
    settings.eos_token_id = expected[0, 2].item()  # would stop the first output there
    settings.max_length = 9
    assert torch.equal(generate(lm, prompts, 12), expected)
    assert llama.generation_config is settings and settings.repetition_penalty == 5.0
    ended = (expected == settings.eos_token_id).any(1).double().mean().item()
    assert score_generation(lm, prompts, 12, seed=0)["ended"] == ended > 0


@torch.no_grad()
def test_outputs_do_not_depend_on_the_batch(llama, monkeypatch):
    lm, prompts = ChunkedCausalLM(llama), tiny.tokens(5, 7)
    whole = generate(lm, prompts, 9)
    monkeypatch.setattr("linearard.evaluation.batching.TOKENS_PER_FORWARD", 32)  # two at a time
    assert torch.equal(generate(lm, prompts, 9), whole)


def test_prompts_are_spread_and_begin_as_texts_do(other_tokenizers):
    documents = [torch.arange(1, 100), torch.arange(100, 200)]
    plain = generation_prompts(other_tokenizers["byte level"], documents, 4, 10)
    assert plain.shape == (4, 10) and len({int(row[0]) // 100 for row in plain}) == 2
    starting = [torch.cat([torch.tensor([0]), document]) for document in documents]
    prompts = generation_prompts(other_tokenizers["start token"], starting, 4, 11)
    assert (prompts[:, 0] == 0).all() and torch.equal(prompts[:, 1:], plain)
    assert len(generation_prompts(other_tokenizers["byte level"], documents, 99, 50)) == 3
    with pytest.raises(DataError, match="at least 300 tokens"):
        generation_prompts(other_tokenizers["byte level"], documents, 4, 300)
