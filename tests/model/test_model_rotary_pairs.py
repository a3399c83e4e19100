"""Fast rotary pairs in the slots nearest to them: a reordering for any table, checked on live models."""

import pytest
import torch

import tiny
from linearard.errors import ModelError, RecipeError
from linearard.model import AdapterConfig, RestorableModel
from linearard.model.rotary_pairs import fast_pairs

FAST = AdapterConfig(kind="direct", rotary_pairs="fast")


def restorable(architecture="llama", scaling=tiny.LINEAR, **changes):
    model = tiny.tiny_model(architecture, **changes)
    return RestorableModel(model, None, scaling, FAST)


def test_slots_choose_in_order_of_frequency():
    # 1 / 4 lies nearest to 0.3, 0.3 / 4 to 0.1, and so on: each slot takes its neighbour's pair
    native = torch.tensor([1.0, 0.3, 0.1, 0.02])
    assert fast_pairs(native, native / 4, 1000).tolist() == [1, 2, 3, 0]
    assert fast_pairs(native, native / 4, 100).tolist() == [1, 2, 0, 3], "the last turns too slowly"
    assert fast_pairs(native, native, 1000).tolist() == [0, 1, 2, 3]
    mixed = torch.tensor([0.02, 1.0, 0.1, 0.3])
    assert fast_pairs(native, mixed, 1000).tolist() == [3, 0, 2, 1]


def test_fast_pairs_move_among_their_own_slots():
    """SmolLM2's table: 20 of 32 pairs turn once or more in 8,192 tokens."""
    native = 1e5 ** -(torch.arange(32) / 32)
    order = fast_pairs(native, native / 8, 8192).tolist()
    assert order[:14] == list(range(6, 20)), "as fast as they were"
    assert sorted(order[14:20]) == list(range(6)), "no slot is fast enough"
    assert order[20:] == list(range(20, 32))


def scores(model, layer, view):
    seen = {}
    observing = model.tap.observing(lambda a: seen.setdefault(a.layer, a))
    with torch.no_grad(), model.view(view) as live, observing:
        live(input_ids=tiny.tokens(), use_cache=False)
    return seen[layer]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral"])
def test_first_layer_rotates_each_pair_by_its_new_slot(architecture):
    """Scores of the first layer in float64, one pair at a time, from the weights of a plain model."""
    model = restorable(architecture)
    found = scores(model, 0, "restored")
    plain = scores(model, 0, "original")
    native, stretched = (
        model.rope.tables(v)[""].inv_freq.double() for v in ("native", "stretched")
    )
    order = fast_pairs(native, stretched, tiny.WINDOW).tolist()
    half = len(order)
    q, k = plain.query.double(), plain.key.double()
    group = q.shape[1] // k.shape[1]
    tokens = q.shape[2]

    def unrotated(x, pair):
        angle = torch.arange(tokens).double() * native[pair]
        a, b = x[..., pair], x[..., pair + half]
        return torch.complex(a, b) * torch.exp(-1j * angle)

    expected = torch.zeros(*q.shape[:3], tokens, dtype=torch.float64)
    for slot, pair in enumerate(order):
        angle = torch.arange(tokens).double() * stretched[slot]
        turned = [unrotated(x, pair) * torch.exp(1j * angle) for x in (q, k)]
        turned[1] = turned[1].repeat_interleave(group, 1)
        expected += (turned[0][..., :, None] * turned[1][..., None, :].conj()).real
    keys = found.key.double().repeat_interleave(group, 1)
    got = found.query.double() @ keys.mT
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


def test_teacher_and_untrained_model_stay():
    plain = tiny.tiny_restorable(kind="direct")
    moved = restorable()
    for view in ("original", "stretched"):
        logits = []
        for model in (plain, moved):
            with torch.no_grad(), model.view(view) as live:
                logits.append(live(input_ids=tiny.tokens(), use_cache=False).logits)
        assert torch.equal(*logits)


def test_merged_model_is_the_student():
    model = restorable()
    with torch.no_grad():
        student = model.model(input_ids=tiny.tokens(), use_cache=False).logits
        merged = model.adapter.merge()(input_ids=tiny.tokens(), use_cache=False).logits
    torch.testing.assert_close(merged, student, rtol=1e-4, atol=1e-4)


def test_where_rows_are_not_pairs_of_a_head():
    with pytest.raises(ModelError, match=r"no trained q_proj of its own.*adapter\.rotary_pairs"):
        restorable("phi3")
    with pytest.raises(ModelError, match="several RoPE tables"):
        restorable("gemma3")
    with pytest.raises(RecipeError, match="without kind direct"):
        AdapterConfig(kind="lora", rotary_pairs="fast")
    with pytest.raises(RecipeError, match="kept, fast"):
        AdapterConfig(kind="direct", rotary_pairs="close")


def test_a_norm_between_projection_and_rotation_is_noticed():
    model = tiny.tiny_model("qwen3")
    for layer in model.model.layers:
        width = layer.self_attn.q_norm.weight.numel()
        layer.self_attn.q_norm.weight.data = torch.linspace(0.1, 3, width)
    with pytest.raises(ModelError, match="another result in layer"):
        RestorableModel(model, None, tiny.LINEAR, FAST)
