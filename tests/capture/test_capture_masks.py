"""Masks that are never written down: what they say, and that nothing of tokens by tokens is allocated."""

import inspect

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from linearard.capture import AttentionTap
from linearard.capture.masks import Causal, Documents, UnwrittenMask, compact_mask
from linearard.distill import ObjectiveConfig, RestorationModule
from linearard.model import ChunkedCausalLM

TOKENS = 61
PADDINGS = {
    "right": [(1, slice(50, None))],
    "left": [(1, slice(0, 17)), (0, slice(0, 60))],
    "within": [(0, slice(20, 27)), (1, slice(0, 3))],
}


def attention_mask(padding):
    mask = torch.ones(2, TOKENS, dtype=torch.int64)
    for row, columns in PADDINGS[padding]:
        mask[row, columns] = 0
    return mask


def eager_and_tapped(architecture, **changes):
    models = [tiny.tiny_model(architecture, **changes).requires_grad_(False) for _ in range(2)]
    models[0].set_attn_implementation("eager")
    AttentionTap(models[1])
    return models


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_mask_of_transformers_is_kept(architecture):
    """Padding on either side and between tokens, and packed documents, beside attention that writes masks."""
    eager, tapped = eager_and_tapped(architecture)
    ids = tiny.tokens(2, TOKENS)
    positions = torch.cat([torch.arange(20), torch.arange(1), torch.arange(TOKENS - 21)])
    cases = [{"attention_mask": attention_mask(name)} for name in PADDINGS]
    cases += [{}, {"position_ids": positions[None].expand(2, -1)}]
    for options in cases:
        expected, got = (
            model(input_ids=ids, use_cache=False, **options).logits for model in (eager, tapped)
        )
        valid = options.get("attention_mask", torch.ones_like(ids)).bool()
        torch.testing.assert_close(got[valid], expected[valid], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gemma3"])
@pytest.mark.parametrize("chunk", [TOKENS, 23])
def test_caches_and_padding_on_the_left(architecture, chunk):
    """Logits of texts that are read in parts, beside those of the same texts read at once."""
    eager, tapped = eager_and_tapped(architecture)
    ids, mask = tiny.tokens(2, TOKENS), attention_mask("left")
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = eager(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    cache, found = None, []
    # renamed in transformers 5.24
    name = "cache" if "cache" in inspect.signature(tapped.forward).parameters else "past_key_values"
    for start in range(0, TOKENS, chunk):
        part = slice(start, start + chunk)
        output = tapped(
            input_ids=ids[:, part],
            attention_mask=mask[:, : start + chunk],
            position_ids=positions[:, part],
            use_cache=True,
            **{name: cache},
        )
        cache = output.past_key_values
        found.append(output.logits)
    valid = mask.bool()
    torch.testing.assert_close(torch.cat(found, 1)[valid], expected[valid], rtol=1e-5, atol=1e-5)


def mask_of(function, *, padding=None, size=None, skip=True):
    return compact_mask(
        2,
        TOKENS,
        TOKENS,
        mask_function=function,
        attention_mask=padding,
        local_size=size,
        allow_is_causal_skip=skip,
    )


def test_what_a_mask_says():
    """Structure found by looking at a few places is that of the whole mask."""
    from transformers import masking_utils as masks

    documents = torch.tensor([[0] * 20 + [1] * 41, [0] * 61])
    apart = Documents(((20, 41), (61,)))
    packed = masks.and_masks(
        masks.causal_mask_function, masks.packed_sequence_mask_function(documents)
    )
    window = masks.sliding_window_causal_mask_function(9)
    assert mask_of(masks.causal_mask_function) is None
    assert mask_of(window, size=9).causal == Causal(9, None)
    assert mask_of(window, size=TOKENS) is None
    assert mask_of(packed, skip=False).causal == Causal(None, apart)
    both = masks.and_masks(window, masks.packed_sequence_mask_function(documents))
    assert mask_of(both, size=9, skip=False).causal == Causal(9, apart)
    chunked = masks.chunked_causal_mask_function(25, torch.zeros(2, dtype=torch.int64))
    assert mask_of(chunked, size=25).causal == Causal(25, Documents(((25, 25, 11),) * 2))
    # A mask that a model insists on, to add to it, is written: as Doge does.
    for padding in (None, attention_mask("right").bool()):
        insisted = mask_of(masks.causal_mask_function, padding=padding, skip=False)
        assert insisted.shape == (2, 1, TOKENS, TOKENS)
    assert mask_of(window, size=9, skip=False).shape == (2, 1, TOKENS, TOKENS)
    looks_ahead = masks.or_masks(masks.causal_mask_function, masks.blockwise_overlay(documents))
    assert mask_of(looks_ahead, skip=False).causal is None
    padded = mask_of(masks.causal_mask_function, padding=attention_mask("right").bool())
    assert padded.causal == Causal(None, Documents(((61,), (50, 11))))
    within = mask_of(masks.causal_mask_function, padding=attention_mask("within").bool())
    assert within.causal is None
    whole = within.whole()
    assert torch.equal(whole[:, :, 7:30, 3:50], within.block(range(7, 30), range(3, 50)))
    assert torch.equal(whole[1, 0, 10], torch.arange(TOKENS).ge(3) & torch.arange(TOKENS).le(10))


def test_a_model_that_adds_to_its_mask():
    """Doge makes a mask of values for every layer and adds it to the causal one, which must be there."""
    import transformers

    def made():
        torch.manual_seed(0)
        config = transformers.DogeConfig(
            vocab_size=tiny.VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
        )
        return transformers.DogeForCausalLM(config).eval().requires_grad_(False)

    ids, padding = tiny.tokens(2, 41), torch.ones(2, 41, dtype=torch.int64)
    padding[1, 30:] = 0
    untouched, tapped = made(), made()
    AttentionTap(tapped)
    for options in ({}, {"attention_mask": padding}):
        expected, got = (model(input_ids=ids, **options).logits for model in (untouched, tapped))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


class Watch(TorchDispatchMode):
    """Remembers operations whose results have at least `elements` elements."""

    def __init__(self, elements):
        super().__init__()
        self.elements, self.found = elements, []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        for result in torch.utils._pytree.tree_leaves(results):
            if isinstance(result, torch.Tensor):
                size = result.untyped_storage().nbytes() // result.element_size()
                if size >= self.elements:
                    self.found.append((str(operation), tuple(result.shape)))
        return results


LONG = 1201
LONG_ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma2", "gemma3", "phi3"]


@pytest.mark.parametrize("architecture", LONG_ARCHITECTURES)
def test_nothing_of_tokens_by_tokens_is_allocated(architecture):
    """In a training step with a teacher, in evaluation, padded and not, and where a text is continued."""
    restorable = tiny.tiny_restorable(
        architecture, changes={"max_position_embeddings": 512, "num_hidden_layers": 3}
    )
    objective = ObjectiveConfig(
        relations={}, logit_weight=1.0, logit_positions=None, teacher_window=256, lm_weight=1.0
    )
    module = RestorationModule(restorable, objective).train()
    ids = tiny.tokens(1, LONG)
    # Some heads by some rows of a block are less than this, and a mask of all tokens is not.
    with Watch(LONG * LONG) as watch:
        module(ids)["loss"].backward()
        with torch.no_grad():
            language_model = ChunkedCausalLM(restorable.model)
            language_model.hidden(ids)
            padding = torch.ones_like(ids)
            padding[0, -100:] = 0
            language_model.hidden(ids, padding)
            model = restorable.model
            model = getattr(model, "get_base_model", lambda: model)()
            model.generate(
                input_ids=ids,
                attention_mask=padding.flip(1),
                max_new_tokens=2,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
    assert not watch.found


def test_the_watch_sees_a_mask():
    with Watch(41 * 41) as watch:
        eager, _ = eager_and_tapped("llama")
        eager(input_ids=tiny.tokens(1, 41), use_cache=False)
    assert watch.found


def test_an_unwritten_mask_is_what_layers_are_given():
    model, given = tiny.tiny_model("mistral"), []
    AttentionTap(model)
    model.get_decoder().layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["attention_mask"]), with_kwargs=True
    )
    model(input_ids=tiny.tokens(1, TOKENS), use_cache=False)
    assert isinstance(given[0], UnwrittenMask) and given[0].causal == Causal(24, None)
