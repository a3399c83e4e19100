"""One copy of the weights, three views and those remembered."""

import pytest
import torch

import tiny
from linearard.errors import ModelError
from linearard.model import AdapterConfig, ChunkedCausalLM, RestorableModel

KINDS = ("lora", "direct")


@torch.no_grad()
def logits(restorable, view, ids=None):
    with restorable.view(view) as model:
        return model(input_ids=tiny.tokens() if ids is None else ids, use_cache=False).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_three_views_of_every_architecture(architecture, kind):
    with torch.no_grad():
        untouched = tiny.tiny_model(architecture)(input_ids=tiny.tokens()).logits
    restorable = tiny.tiny_restorable(architecture, kind=kind)
    original = logits(restorable, "original")
    if (
        architecture == "gemma2"
    ):  # its capped scores are computed in blocks, which round in another way
        torch.testing.assert_close(original, untouched, rtol=1e-5, atol=1e-5)
        untouched = original
    assert torch.equal(original, untouched)
    stretched = logits(restorable, "stretched")
    assert (stretched - untouched).abs().max() > 0.1
    # an adapter that has learned nothing changes nothing
    assert torch.equal(logits(restorable, "restored"), stretched)
    tiny.perturb_adapter(restorable)
    assert torch.equal(logits(restorable, "original"), untouched)
    assert torch.equal(logits(restorable, "stretched"), stretched)
    assert (logits(restorable, "restored") - stretched).abs().max() > 0.1


def test_gemma3_stretched_changes_full_attention_layers_only():
    only_sliding = {"layer_types": ["sliding_attention"] * 2 + ["full_attention"]}
    restorable = tiny.tiny_restorable("gemma3", changes=only_sliding)
    seen = {}
    for view in ("original", "stretched"):
        with restorable.tap.observing(lambda a, view=view: seen.__setitem__((view, a.layer), a)):
            logits(restorable, view)
    for layer in (0, 1):
        assert torch.equal(seen["original", layer].query, seen["stretched", layer].query)
    assert not torch.equal(seen["original", 2].query, seen["stretched", 2].query)
    assert torch.equal(seen["original", 2].value, seen["stretched", 2].value)


def test_views_nest_and_come_back_after_errors(restorable):
    tiny.perturb_adapter(restorable)
    rest = logits(restorable, "restored")
    with restorable.view("original"):
        original = logits(restorable, "original")
        with restorable.view("stretched"), pytest.raises(RuntimeError):
            with restorable.view("restored"):
                raise RuntimeError
            raise AssertionError("not reached")
        with torch.no_grad():
            assert torch.equal(restorable.model(input_ids=tiny.tokens()).logits, original)
    with torch.no_grad():
        assert torch.equal(restorable.model(input_ids=tiny.tokens()).logits, rest)


def test_an_unknown_view_is_refused(restorable):
    with (
        pytest.raises(ModelError, match="'orignal'") as caught,
        restorable.view("orignal"),
    ):
        pass
    assert "original, stretched, restored" in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_remembered_weights_are_a_view(kind):
    restorable = tiny.tiny_restorable(kind=kind)
    tiny.perturb_adapter(restorable, seed=1)
    first = logits(restorable, "restored")
    restorable.remember("after one")
    tiny.perturb_adapter(restorable, seed=2)
    second = logits(restorable, "restored")
    assert not torch.equal(first, second)
    assert list(restorable.views()) == ["original", "stretched", "after one", "restored"]
    for _ in range(2):
        assert torch.equal(logits(restorable, "after one"), first)
        assert torch.equal(logits(restorable, "restored"), second)
    with restorable.view("after one"), restorable.views()["restored"]():
        assert torch.equal(logits(restorable, "restored"), second)
    assert torch.equal(logits(restorable, "after one"), first)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_trains(kind):
    restorable = tiny.tiny_restorable(kind=kind)
    trained = {n for n, p in restorable.model.named_parameters() if p.requires_grad}
    expected = {"q_proj", "k_proj", "v_proj"}
    assert {
        part for name in trained for part in name.split(".") if part.endswith("_proj")
    } == expected
    assert all(p.dtype == torch.float32 for p in restorable.adapter.parameters())
    assert len(restorable.adapter.parameters()) == len(trained) == (18 if kind == "lora" else 9)
    frozen = tiny.tiny_restorable(kind=kind, trainable=False)
    assert not any(p.requires_grad for p in frozen.model.parameters())


def test_the_fingerprint_knows_the_weights_but_not_the_precision():
    def fingerprint(model):
        return RestorableModel(model, None, tiny.LINEAR, AdapterConfig(r=2)).fingerprint

    def in_bfloat16(model):
        for parameter in model.parameters():  # not .to(): that would round the RoPE frequencies
            parameter.data = parameter.data.bfloat16()
        return model

    same = fingerprint(tiny.tiny_model())
    assert fingerprint(tiny.tiny_model()) == same
    assert fingerprint(in_bfloat16(tiny.tiny_model())) == same
    assert fingerprint(tiny.tiny_model(seed=1)) != same
    assert fingerprint(tiny.tiny_model("mistral")) != same
    changed = tiny.tiny_model()
    with torch.no_grad():
        changed.model.layers[2].mlp.up_proj.weight[0, 5] *= 1.1
    assert fingerprint(changed) != same


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_model_taken_apart_is_the_model(architecture):
    restorable = tiny.tiny_restorable(architecture)
    tiny.perturb_adapter(restorable)
    apart = ChunkedCausalLM(restorable.model)
    apart.check(restorable.views(), tiny.tokens(1, 29)[0])
    ids = tiny.tokens(2, 13)
    with torch.no_grad():
        got = apart.logits(apart.hidden(ids).flatten(0, 1)).view(2, 13, -1)
        expected = restorable.model(input_ids=ids).logits
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_special_output_stage_is_noticed(restorable):
    apart = ChunkedCausalLM(restorable.model)
    apart._softcap = 2.0  # as if the model had one that its configuration does not name
    with pytest.raises(ModelError, match="relative difference"):
        apart.check(restorable.views(), tiny.tokens(1, 29)[0])


def test_a_model_without_a_head_is_refused(llama):
    with pytest.raises(ModelError, match="got LlamaModel"):
        ChunkedCausalLM(llama.model)


def test_chunks_cover_every_row_within_the_budget(restorable, monkeypatch):
    from linearard.model import causal_lm

    monkeypatch.setattr(causal_lm, "LOGIT_ELEMENTS", 7 * tiny.VOCAB + 3)
    parts = list(ChunkedCausalLM(restorable.model).chunks(23))
    assert [p.stop - p.start for p in parts] == [7, 7, 7, 2]
    assert [row for p in parts for row in range(p.start, p.stop)] == list(range(23))
