"""Which layers a scaling reaches, which keys and scales go with it, and what is refused without weights."""

import math

import pytest
import torch
import transformers

import tiny
from linearard.errors import ModelError, RopeError
from linearard.model import AdapterConfig, check_supported
from linearard.rope import RopeViews, check_scaling

LORA = AdapterConfig(r=4, alpha=8.0)
SHAPE = {k: v for k, v in tiny.tiny_config().to_dict().items() if k in tiny.SHAPE_KEYS}
YARN = {"rope_type": "yarn", "factor": 4}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
#: Without a window these layers have no RoPE at all.
WINDOWED_ROPE = {
    "Cohere2Config": {"head_dim": 8, "sliding_window": 24, "layer_types": MIXED},
    "Exaone4Config": {"sliding_window": 24, "layer_types": MIXED},
    "FlintConfig": {
        "head_dim": 8,
        "sliding_window": 24,
        "layer_types": MIXED,
    },  # with float32 sinks
    "AfmoeConfig": {
        "head_dim": 8,
        "sliding_window": 24,
        "layer_types": MIXED,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "num_dense_layers": 1,
    },
}
#: These have it, in one table for all layers.
SHARED_ROPE = {
    "GptOssConfig": {
        "head_dim": 8,
        "sliding_window": 24,
        "layer_types": MIXED,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "Gemma2Config": {"head_dim": 8, "sliding_window": 24, "layer_types": MIXED},
    "CwmConfig": {
        "head_dim": 8,
        "sliding_window": 24,
        "layer_types": MIXED,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
MSCALE = {
    "rope_type": "yarn",
    "factor": 4.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "original_max_position_embeddings": 16,
}


def make_config(name, **changes):
    kind = getattr(transformers, name, None)
    if kind is None:
        pytest.skip(f"this version of transformers has no {name}")
    return kind(**SHAPE | changes)


def make_model(config, dtype=torch.float32):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@pytest.mark.parametrize("name", WINDOWED_ROPE)
def test_rope_in_windows_alone_leaves_nothing_to_stretch(name):
    config = make_config(name, **WINDOWED_ROPE[name])
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(RopeError, match="in layers with a sliding window alone"):
            RopeViews(make_model(config, dtype), tiny.LINEAR)
    with pytest.raises(RopeError, match="in layers with a sliding window alone"):
        check_supported(config, tiny.LINEAR, LORA)


@pytest.mark.parametrize("name", SHARED_ROPE)
def test_rope_in_layers_without_a_window_is_stretched(name):
    config = make_config(name, **SHARED_ROPE[name])
    check_supported(config, tiny.LINEAR, LORA)
    views = RopeViews(make_model(config), tiny.LINEAR)
    native, stretched = views.tables("native")[""], views.tables("stretched")[""]
    torch.testing.assert_close(stretched.inv_freq * 4, native.inv_freq)


def test_windows_in_every_layer_are_stretched_as_asked():
    views = RopeViews(tiny.tiny_model("mistral"), tiny.LINEAR)
    assert not views.tables("stretched")[""].same_as(views.tables("native")[""])


def test_a_model_whose_every_table_is_for_windows_is_refused():
    config = tiny.tiny_config("gemma3", layer_types=["sliding_attention"] * 3)
    with pytest.raises(RopeError, match="in layers with a sliding window alone"):
        check_supported(config, tiny.LINEAR, LORA)


@pytest.mark.parametrize("name", ["DeepseekV3Config", "YoutuConfig", "Glm4MoeLiteConfig"])
@pytest.mark.parametrize("native", ["plain", "scaled"])
def test_yarn_scales_the_softmax_where_the_model_says_so(name, native):
    """(1 + 0.1 ln factor)^2 / sqrt(head_dim), of the factor of each view."""
    own = MSCALE | {"rope_theta": 10000.0}
    config = make_config(
        name, **tiny.MLA | ({"rope_parameters": own} if native == "scaled" else {})
    )
    model = make_model(config)
    factor = 16.0
    asked = MSCALE | {"factor": factor}
    views = RopeViews(model, asked)

    def expected(by):
        return (0.1 * math.log(by) + 1) ** 2 / math.sqrt(16)

    attention = model.model.layers[1].self_attn
    wanted = {"native": expected(4.0 if native == "scaled" else 1.0), "stretched": expected(factor)}
    for view, scale in wanted.items():
        views.activate(view)
        assert attention.scaling == pytest.approx(scale)
        assert views.softmax_scales(view) == pytest.approx(dict.fromkeys(range(3), scale))


def test_a_softmax_scale_is_not_taken_away():
    own = MSCALE | {"rope_theta": 10000.0}
    model = make_model(make_config("DeepseekV3Config", **tiny.MLA, rope_parameters=own))
    with pytest.raises(RopeError, match="also scales its softmax"):
        RopeViews(model, {"rope_type": "linear", "factor": 4})


def test_plain_yarn_leaves_the_softmax_alone():
    model = make_model(make_config("DeepseekV3Config", **tiny.MLA))
    views = RopeViews(model, YARN)
    assert views.softmax_scales("stretched") == views.softmax_scales("native")


MINISTRAL = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
    "rope_theta": 1000000.0,
}


@pytest.mark.parametrize("named", [True, False])
def test_keys_that_the_model_reads_itself_are_carried(named):
    config = make_config("Ministral3Config", head_dim=8, rope_parameters=dict(MINISTRAL))
    asked = MINISTRAL | {"factor": 16.0}
    if not named:
        del asked["llama_4_scaling_beta"], asked["original_max_position_embeddings"]
    checked = check_scaling(asked, config)
    assert checked == MINISTRAL | {"factor": 16.0}
    views = RopeViews(make_model(config), asked)
    assert views.carried == {
        "llama_4_scaling_beta": 0.1,
        "original_max_position_embeddings": 16,
    }


def test_carried_keys_survive_another_type_of_scaling():
    own = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "llama_4_scaling_beta": 0.1,
        "original_max_position_embeddings": 16,
    }
    config = make_config("Ministral3Config", head_dim=8, rope_parameters=own)
    checked = check_scaling({"rope_type": "linear", "factor": 4}, config)
    assert checked["llama_4_scaling_beta"] == 0.1
    views = RopeViews(make_model(config), {"rope_type": "linear", "factor": 4})
    assert (views.native_window, views.target_window) == (64, 256)


def test_a_carried_key_cannot_be_changed():
    config = make_config("Ministral3Config", head_dim=8, rope_parameters=dict(MINISTRAL))
    with pytest.raises(RopeError, match="which the model itself reads"):
        check_scaling(MINISTRAL | {"factor": 16.0, "llama_4_scaling_beta": 0.2}, config)


@pytest.mark.parametrize("kind", tiny.SCALINGS)
def test_a_head_dim_of_null_is_worked_out(kind):
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    config = make_config("MixtralConfig", num_local_experts=4, head_dim=None, rope_parameters=plain)
    assert config.head_dim is None
    views = RopeViews(make_model(config), tiny.SCALINGS[kind])
    same = RopeViews(tiny.tiny_model(head_dim=8), tiny.SCALINGS[kind])
    assert views.tables("stretched")[""].same_as(same.tables("stretched")[""])


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "Llama4TextConfig",
            {
                "head_dim": 8,
                "intermediate_size_mlp": 48,
                "num_local_experts": 2,
                "no_rope_layers": [1, 1, 0],
                "attention_chunk_size": 64,
            },
            "a rotary module that gives cosine and sine",
        ),
        ("DeepseekV2Config", tiny.MLA, "a rotary module that gives cosine and sine"),
        ("ModernBertDecoderConfig", {"local_attention": 24}, "attention"),
        (
            "Gemma4TextConfig",
            {"head_dim": 8, "layer_types": MIXED[1:] + MIXED[1:2]},
            "'proportional'",
        ),
        ("GPT2Config", {}, "rotary position embeddings"),
        ("PhimoeConfig", {"num_local_experts": 2}, "does more than its frequencies say"),
        ("FalconConfig", {"alibi": False, "num_kv_heads": 2}, "attention interface"),
        ("RecurrentGemmaConfig", {}, "sliding window alone|attention in 3 layers|its window"),
    ],
)
def test_refused_in_words_without_weights(name, changes, words):
    try:
        config = make_config(name, **changes)
    except TypeError:
        config = getattr(transformers, name)(vocab_size=258, **changes)
    with pytest.raises((ModelError, RopeError), match=words):
        check_supported(config, YARN, LORA)
