"""Layers whose indexer chooses the keys that a query sees."""

import pytest
import torch
import transformers

import tiny
from linearard.capture import AttentionTap

TOKENS = 41
INDEXER = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 5}
LATENT = tiny.MLA | INDEXER | {"head_dim": 8}
BLOCKS = {
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_block_size": 4,
    "index_topk_blocks": 2,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "layer_types": ["minimax_m3_sparse", "full_attention", "minimax_m3_sparse"],
}
#: By name of the configuration: what it needs, and what makes its indexer choose everything.
CLASSES = {
    "DeepseekV32Config": (LATENT, {"index_topk": TOKENS}),
    "GlmMoeDsaConfig": (LATENT, {"index_topk": TOKENS}),
    "HYV4Config": (LATENT, {"index_topk": TOKENS}),
    "AXK2Config": (LATENT, {"index_topk": TOKENS}),
    "MiniMaxM3VLTextConfig": (BLOCKS, {"index_topk_blocks": TOKENS}),
}


def made(name, **changes):
    if not hasattr(transformers, name):
        pytest.skip(f"this version of transformers has no {name}")
    shape = {key: getattr(tiny.tiny_config(), key) for key in tiny.SHAPE_KEYS}
    config = getattr(transformers, name)(**shape | CLASSES[name][0] | changes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    return model.eval().requires_grad_(False)


def logits(model, **options):
    return model(input_ids=tiny.tokens(2, TOKENS), use_cache=False, **options).logits


@pytest.mark.parametrize("name", CLASSES)
def test_a_tapped_model_sees_the_keys_that_its_indexer_has_chosen(name):
    untouched, tapped = made(name), made(name)
    AttentionTap(tapped)
    expected = logits(untouched)
    torch.testing.assert_close(logits(tapped), expected, rtol=1e-4, atol=1e-5)
    # which can be told from seeing all of them
    everything = logits(made(name, **CLASSES[name][1]))
    assert float((everything - expected).norm() / expected.norm()) > 0.01

    padding = torch.ones(2, TOKENS, dtype=torch.int64)
    padding[1, :9] = 0
    # MiniMax's indexer scores padding too: before the text it would choose by what means nothing.
    for mask in [padding.flip(1)] + [padding] * (CLASSES[name][0] is LATENT):
        expected, got = (logits(m, attention_mask=mask) for m in (untouched, tapped))
        valid = mask.bool()
        torch.testing.assert_close(got[valid], expected[valid], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["DeepseekV32Config", "MiniMaxM3VLTextConfig"])
@pytest.mark.parametrize("chosen", ["sdpa", "eager"])
def test_the_choice_is_kept_in_packed_texts_and_under_other_attention(name, chosen):
    untouched, tapped = (made(name, attn_implementation=chosen) for _ in range(2))
    AttentionTap(tapped)
    positions = torch.cat([torch.arange(17), torch.arange(TOKENS - 17)])[None].expand(2, -1)
    expected, got = (logits(model, position_ids=positions) for model in (untouched, tapped))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
