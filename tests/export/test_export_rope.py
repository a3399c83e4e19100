"""The exported configuration makes the stretched model: frequencies, softmax scales, keys read elsewhere."""

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from linearard.export.configuration import write_configuration
from linearard.model import AdapterConfig, RestorableModel

SHAPE = {k: v for k, v in tiny.tiny_config().to_dict().items() if k in tiny.SHAPE_KEYS}
LARGER_BASE = {"rope_type": "default", "rope_theta": 5e7, "factor": 4}
LLAMA3 = tiny.SCALINGS["llama3"] | {
    "factor": 2.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 10000.0,
}
MSCALE = {
    "rope_type": "yarn",
    "factor": 4.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16,
}
SCALED_QUERIES = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "llama_4_scaling_beta": 0.1,
    "original_max_position_embeddings": 16,
}
MINISTRAL = ("Ministral3Config", {"head_dim": 8, "rope_parameters": SCALED_QUERIES})
MIXTRAL = ("MixtralConfig", {"num_local_experts": 4, "head_dim": None})
#: Configuration class, what differs from the shape of all, scaling.
CASES = {
    "a larger base": ("LlamaConfig", {}, LARGER_BASE),
    "a larger base, by layer type": (
        "Gemma3TextConfig",
        {
            "head_dim": 8,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        LARGER_BASE,
    ),
    "linear over llama3": ("LlamaConfig", {"rope_parameters": LLAMA3}, tiny.LINEAR),
    "yarn over llama3": ("LlamaConfig", {"rope_parameters": LLAMA3}, tiny.SCALINGS["yarn"]),
    "null head_dim, yarn": (*MIXTRAL, tiny.SCALINGS["yarn"]),
    "null head_dim, dynamic": (*MIXTRAL, tiny.SCALINGS["dynamic"]),
    "null head_dim, longrope": (*MIXTRAL, tiny.SCALINGS["longrope"]),
    "scaled queries, linear": (*MINISTRAL, tiny.LINEAR),
    "scaled queries, dynamic": (*MINISTRAL, tiny.SCALINGS["dynamic"]),
    "scaled queries, longrope": (*MINISTRAL, tiny.SCALINGS["longrope"]),
    "softmax scale": (
        "DeepseekV3Config",
        tiny.MLA | {"rope_parameters": MSCALE | {"rope_theta": 10000.0}},
        MSCALE | {"factor": 16.0},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_model_made_from_the_configuration_is_the_stretched_view(case, tmp_path):
    name, changes, scaling = CASES[case]
    if not hasattr(transformers, name):
        pytest.skip(f"this version of transformers has no {name}")
    torch.manual_seed(0)
    config = getattr(transformers, name)(**SHAPE | changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    adapter = AdapterConfig(r=4, alpha=8.0, dropout=0.0)
    restorable = RestorableModel(model, None, scaling, adapter)
    write_configuration(restorable.config, restorable.rope, tmp_path)

    read = AutoConfig.from_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_config(read, dtype=torch.float32).eval()
    again.load_state_dict(weights)
    ids = tiny.tokens(1, 3 * tiny.WINDOW)
    with torch.no_grad(), restorable.view("stretched") as stretched:
        expected = stretched(input_ids=ids, use_cache=False).logits
        got = again(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    scales = {m.layer_idx: m.scaling for m in again.modules() if hasattr(m, "scaling")}
    assert scales == pytest.approx(restorable.rope.softmax_scales("stretched"))
    assert read.max_position_embeddings == restorable.rope.target_window
