"""Native and stretched tables on a live model."""

import pytest
import torch
from torch import nn

import tiny
from linearard.errors import ModelError, RopeError
from linearard.rope import RopeViews


@torch.no_grad()
def logits(model, ids=None):
    return model(input_ids=tiny.tokens() if ids is None else ids).logits


@pytest.mark.parametrize("kind", tiny.SCALINGS)
def test_native_view_is_the_untouched_model_bit_for_bit(kind, llama):
    untouched = logits(llama)
    views = RopeViews(llama, tiny.SCALINGS[kind])
    stretched = logits(llama)
    assert (stretched - untouched).abs().max() > 0.1  # left in the stretched view
    views.activate("native")
    assert torch.equal(logits(llama), untouched)
    views.activate("stretched")
    assert torch.equal(logits(llama), stretched)
    views.check()
    assert torch.equal(logits(llama), stretched)  # a check ends in the stretched view


@pytest.mark.parametrize("kind", tiny.SCALINGS)
def test_switching_gives_exactly_the_tables(kind, llama):
    rotary = llama.model.rotary_emb
    native = rotary.inv_freq.clone()
    views = RopeViews(llama, tiny.SCALINGS[kind])
    (stretched,) = views.tables("stretched").values()
    for _ in range(3):
        views.activate("native")
        assert torch.equal(rotary.inv_freq, native) and rotary.attention_scaling == 1.0
        views.activate("stretched")
        assert torch.equal(rotary.inv_freq, stretched.inv_freq)
        assert rotary.attention_scaling == stretched.attention_scaling
    assert not torch.equal(native, stretched.inv_freq)


@pytest.mark.parametrize("kind", tiny.SCALINGS)
def test_one_table_at_every_length(kind, llama):
    """`dynamic` and `longrope` change with the length of the text in transformers; not so here."""
    RopeViews(llama, tiny.SCALINGS[kind])
    long_text = tiny.tokens(1, 4 * tiny.WINDOW)
    short = logits(llama, long_text[:, :11])
    torch.testing.assert_close(logits(llama, long_text)[:, :11], short, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(llama, long_text[:, :11]), short)


def test_a_natively_dynamic_model_keeps_its_own_behaviour_in_the_native_view():
    native = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = tiny.tiny_model(rope_parameters=native)
    long_text = tiny.tokens(1, 2 * tiny.WINDOW)
    expected = {n: logits(model, long_text[:, :n]) for n in (128, 17)}
    views = RopeViews(model, {"rope_type": "dynamic", "factor": 8})
    views.activate("native")
    assert all(torch.equal(logits(model, long_text[:, :n]), e) for n, e in expected.items())
    views.activate("stretched")
    assert model.model.rotary_emb.rope_type == "default"


def test_a_natively_longrope_model_does_not_write_into_our_tables():
    native = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "factor": 2.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 1.5, 2.0, 2.0],
        "original_max_position_embeddings": tiny.WINDOW // 2,
    }
    model = tiny.tiny_model(rope_parameters=native)
    larger = {"rope_type": "longrope", "factor": 8, "long_factor": [1.0, 2.0, 4.0, 8.0]}
    views = RopeViews(model, larger)
    before = {v: views.tables(v)[""].inv_freq.clone() for v in ("native", "stretched")}
    for view in ("native", "stretched"):
        views.activate(view)
        logits(model, tiny.tokens(1, tiny.WINDOW))
    for view, table in before.items():
        assert torch.equal(views.tables(view)[""].inv_freq, table)


def test_frequencies_rounded_by_a_cast_are_caught(llama):
    with pytest.raises(RopeError, match="casting a whole model"):
        RopeViews(llama.to(torch.bfloat16), tiny.LINEAR)


def test_a_cast_afterwards_is_healed_by_the_next_switch(llama):
    views = RopeViews(llama, tiny.LINEAR)
    llama.to(torch.bfloat16)
    views.check()
    assert llama.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_replaced_rotary_module_is_caught(llama):
    views = RopeViews(llama, tiny.LINEAR)
    views.check()
    llama.model.rotary_emb = type(llama.model.rotary_emb)(config=llama.config)
    with pytest.raises(RopeError, match="another one in their place"):
        views.check()


def test_a_module_that_rotates_otherwise_is_caught(llama):
    views = RopeViews(llama, tiny.LINEAR)
    forward = llama.model.rotary_emb.forward
    llama.model.rotary_emb.forward = lambda x, positions: forward(x, positions + 1)
    with pytest.raises(RopeError, match="other angles"):
        views.check()


def test_other_attention_scaling_is_caught(llama):
    views = RopeViews(llama, {"rope_type": "yarn", "factor": 4})
    forward = llama.model.rotary_emb.forward
    llama.model.rotary_emb.forward = lambda x, p: tuple(1.01 * t for t in forward(x, p))
    with pytest.raises(RopeError, match="other angles"):
        views.check()


def test_a_stretch_that_changes_nothing_is_refused(llama):
    same = {
        "rope_type": "table",
        "factor": 4,
        "inv_freq": llama.model.rotary_emb.inv_freq.tolist(),
    }
    with pytest.raises(RopeError, match="the same table twice"):
        RopeViews(llama, same)


def test_a_wrong_part_of_the_head_is_refused(llama):
    with pytest.raises(RopeError, match="expected 4 frequencies"):
        RopeViews(llama, {**tiny.LINEAR, "partial_rotary_factor": 0.5})


def test_a_model_without_rope_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11))
    with pytest.raises(RopeError, match="rotary position embeddings"):
        RopeViews(gpt2, tiny.LINEAR)


def test_a_configuration_with_rope_but_no_rotary_module_is_refused(llama):
    class Bare(nn.Module):
        config = llama.config

    with pytest.raises(ModelError, match="got Bare"):
        RopeViews(Bare(), tiny.LINEAR)


def test_sliding_layers_keep_native_rope():
    model = tiny.tiny_model("gemma3")
    views = RopeViews(model, tiny.LINEAR)
    native, stretched = views.tables("native"), views.tables("stretched")
    assert stretched.keys() == {"sliding_attention", "full_attention"}
    assert stretched["sliding_attention"].same_as(native["sliding_attention"])
    torch.testing.assert_close(
        stretched["full_attention"].inv_freq * 4,
        native["full_attention"].inv_freq,
        rtol=1e-6,
        atol=0,
    )
    rotary = model.model.rotary_emb
    for view in ("native", "stretched"):
        views.activate(view)
        for kind, table in views.tables(view).items():
            assert torch.equal(getattr(rotary, f"{kind}_inv_freq"), table.inv_freq)
