"""Relation KL by layer and head, and the attention of one head, against attention written out."""

import dense
import pytest
import torch
from torch.testing import assert_close

import tiny
from linearard.distill import attention_maps, relation_profile


def captured(restorable, view, ids):
    restorable.model.eval()
    with torch.no_grad():
        return dense.capture(restorable, view, ids)[0]


def written_out(query, key, scaling, window):
    """Float64 attention `[heads, tokens, tokens]` of the first sequence."""
    query, key = query[0].double(), key[0].double()
    key = key.repeat_interleave(len(query) // len(key), 0)
    at = torch.arange(query.shape[1])
    distance = at[:, None] - at
    seen = (distance >= 0) & (distance < (window or len(at)))
    return (query @ key.mT * scaling).masked_fill(~seen, -torch.inf).softmax(-1)


def test_means_over_heads_are_the_loss_by_layer(restorable):
    blocks = [tiny.tokens(2, 31, seed=s) for s in range(2)]
    before = relation_profile(restorable, blocks)
    assert before.layers["stretched"] == before.layers["restored"]  # nothing learned yet
    tiny.perturb_adapter(restorable)
    profile = relation_profile(restorable, blocks, ["q", "qk"]).layers
    assert profile.keys() == {"stretched", "restored"}
    for view, by_name in profile.items():
        for name, layers in by_name.items():
            for layer, value in enumerate(layers):
                expected = 0.0
                for ids in blocks:
                    teacher, student = (captured(restorable, v, ids) for v in ("original", view))
                    terms = dense.relation_terms(
                        teacher, student, [name], layer_weights={layer: 1.0}
                    )
                    expected += float(terms[f"relation_{name}"]) / 2
                assert value == pytest.approx(expected, rel=1e-4)
    unchanged = before.layers["stretched"]["q"]
    assert profile["stretched"]["q"] == unchanged != profile["restored"]["q"]


@pytest.mark.parametrize("architecture", ["llama", "mistral"])  # Mistral's window is 24
def test_each_head_has_its_own(architecture):
    restorable = tiny.tiny_restorable(architecture)
    tiny.perturb_adapter(restorable)
    ids = tiny.tokens(1, 41)
    profile = relation_profile(restorable, [ids])
    teacher, student = (captured(restorable, v, ids) for v in ("original", "restored"))
    for t, s in zip(teacher, student, strict=True):
        expected = written_out(t.query, t.key, s.scaling, s.sliding_window)
        got = written_out(s.query, s.key, s.scaling, s.sliding_window)
        kl = torch.special.xlogy(expected, expected / got).nan_to_num().sum(-1).mean(-1)
        heads = profile.heads["restored"]["qk"][t.layer]
        assert_close(torch.tensor(heads), kl.float(), rtol=1e-3, atol=1e-6)
        assert len(profile.heads["restored"]["k"][t.layer]) == t.key.shape[1]
    layer, head = profile.most_changed()
    assert profile.heads["stretched"]["qk"][layer][head] == max(
        kl for heads in profile.heads["stretched"]["qk"] for kl in heads
    )


@pytest.mark.parametrize("tokens", [41, 61])
def test_the_map_of_a_head_is_its_attention_in_bins(restorable, tokens):
    tiny.perturb_adapter(restorable)
    ids = tiny.tokens(1, tokens)
    found = attention_maps(restorable, ids[0], 1, 3)
    size = found["bin"]
    assert (found["layer"], found["head"], found["tokens"]) == (1, 3, tokens)
    assert size == (1 if tokens == 41 else 2)
    assert list(found["views"]) == ["original", "stretched", "restored"]
    for view, got in found["views"].items():
        seen = captured(restorable, view, ids)[1]
        whole = written_out(seen.query, seen.key, seen.scaling, None)[3]
        for i, row in enumerate(got):
            for j, value in enumerate(row):
                rows = whole[size * i : size * (i + 1), size * j : size * (j + 1)]
                assert value == pytest.approx(float(rows.sum(1).mean()), abs=1e-6)
    assert found["views"]["stretched"] != found["views"]["restored"]
