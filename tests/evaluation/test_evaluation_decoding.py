"""Continuations of prompts of any lengths are those of `generate`, one prompt at a time."""

import random

import pytest
import torch

import tiny
from linearard.capture import AttentionTap
from linearard.evaluation import decoding
from linearard.evaluation.decoding import continue_greedily
from linearard.model import ChunkedCausalLM, plain_generation

LENGTHS = (5, 41, 23, 1, 23, 60)
LIMITS = (12, 7, 12, 9, 0, 12)


def prompts(seed=0):
    chance = random.Random(seed)
    return [[chance.randrange(256) for _ in range(length)] for length in LENGTHS]


def alone(model, ids, limit):
    if not limit:
        return []
    rows = torch.tensor([ids])
    with plain_generation(model) as writer:
        said = writer.generate(
            input_ids=rows,
            attention_mask=torch.ones_like(rows),
            max_new_tokens=limit,
            do_sample=False,
            use_cache=True,
        )
    return said[0, len(ids) :].tolist()


@pytest.mark.parametrize("tapped", [False, True])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_as_generate_says_it(architecture, tapped):
    """With sliding windows too, and in every padding, with our attention and without."""
    model = tiny.tiny_model(architecture)
    want = [alone(model, ids, limit) for ids, limit in zip(prompts(), LIMITS, strict=True)]
    if tapped:
        AttentionTap(model)
    assert continue_greedily(ChunkedCausalLM(model), prompts(), LIMITS) == want


def test_batches_as_memory_allows(monkeypatch):
    """Each batch fits its room, or is a single prompt; all are continued."""
    model = tiny.tiny_model()
    lm, seen = ChunkedCausalLM(model), []
    want = continue_greedily(lm, prompts(), LIMITS)
    token = 2 * 3 * 2 * 8 * 4  # keys and values, layers, heads, head_dim, bytes
    monkeypatch.setattr(decoding, "_CPU_BYTES", 100 * token)

    def track(batches):
        seen.extend(batches)
        return batches

    assert continue_greedily(lm, prompts(), LIMITS, track=track) == want
    assert sorted(row for batch in seen for row in batch) == list(range(len(LENGTHS)))
    assert len(seen) > 2
    for batch in seen:
        longest = max(LENGTHS[row] for row in batch) + max(LIMITS[row] for row in batch)
        assert len(batch) == 1 or len(batch) * longest <= 100


def test_ends_and_stops():
    model = tiny.tiny_model()
    lm = ChunkedCausalLM(model)
    free = continue_greedily(lm, prompts(), [12] * 6)
    end = free[1][4]
    ended = continue_greedily(lm, prompts(), [12] * 6, ends={end})
    for whole, part in zip(free, ended, strict=True):
        assert part == (whole[: whole.index(end)] if end in whole else whole)
    asked = []

    def stop(row, said):
        asked.append(row)
        return row == 2 and len(said) == 3

    stopped = continue_greedily(lm, prompts(), [12] * 6, stop=stop)
    assert stopped == [*free[:2], free[2][:3], *free[3:]]
    assert asked.count(2) == 3


def test_layers_with_a_state_go_alone(monkeypatch):
    """A cache that cannot be laid beside others': through the model's own `generate`."""
    model = tiny.tiny_model()
    lm = ChunkedCausalLM(model)
    want = continue_greedily(lm, prompts(), LIMITS)
    monkeypatch.setattr(decoding, "has_whole_cache", lambda model: False)
    assert continue_greedily(lm, prompts(), LIMITS) == want


def test_prompts_padded_for_a_faster_kernel(monkeypatch):
    """What stands behind a prompt for the kernel's sake is not gone on from."""
    model = tiny.tiny_model("mistral")
    AttentionTap(model)
    lm = ChunkedCausalLM(model)
    want = continue_greedily(lm, prompts(), LIMITS)
    monkeypatch.setattr("linearard.capture.sdpa._LONG", 4)
    assert continue_greedily(lm, prompts(), LIMITS) == want
