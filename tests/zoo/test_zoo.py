"""A part of the zoo, in seconds; all of it is `make zoo`, whose result is docs/reference/models.md."""

import os
from itertools import product

import pytest
from classes import LEFT_OUT, decoders, has_rotary
from trial import SCALINGS, TRIALS, Trials

from linearard.export import ReaderProcess

#: Names of their own, layer types, experts, another layout of pairs, few scalings in transformers 4, none;
#: latent attention.
PART = ["cohere", "gemma3_text", "gpt_neox", "nemotron", "qwen3_moe", "olmo2", "deepseek_v3"]
#: Not stretched, in words before training: no rotary module of a known kind, no RoPE at all.
REFUSED = ["codegen", "jamba"]


@pytest.fixture(scope="module")
def older():
    """A reader with transformers 4, where its interpreter is named."""
    python = os.environ.get("LINEARARD_TRANSFORMERS4")
    if not python:
        yield None
        return
    with ReaderProcess(python) as process:
        yield process


@pytest.fixture(scope="module")
def trials(reader, older, tmp_path_factory):
    made = {}

    def of(model_type):
        if model_type not in made:
            (decoder,) = (d for d in decoders() if d.model_type == model_type)
            folder = tmp_path_factory.mktemp(model_type)
            made[model_type] = Trials(decoder, folder, reader, older, set(PART))
        return made[model_type]

    return of


@pytest.mark.parametrize("model_type", PART)
@pytest.mark.parametrize("trial", TRIALS[:2], ids="-".join)
def test_what_is_exported_is_what_was_trained(model_type, trial, trials):
    found = trials(model_type).run(*trial)
    assert found.verdict == "same", found
    assert found.older in ("", "same", "told"), found


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_cannot_be_restored_is_refused_in_words(model_type, trials):
    found = trials(model_type).run(*TRIALS[0])
    assert found.verdict == "refused" and found.words.startswith("expected "), found


def test_the_classes_come_from_the_library():
    found = {decoder.model_type for decoder in decoders()}
    assert len(found) > 120 and found >= {*PART, *REFUSED} and not found & LEFT_OUT.keys()
    without = {d.model_type for d in decoders() if d.model_type in ("gpt2", "bert", "llama")}
    rotary = {d.model_type for d in decoders() if d.model_type in without and has_rotary(d)}
    assert rotary == {"llama"}


def test_every_scaling_is_tried_with_both_adapters_and_precisions():
    everything = product(SCALINGS, ("lora", "direct"), ("float32", "bfloat16"))
    assert sorted(TRIALS) == sorted(everything)
