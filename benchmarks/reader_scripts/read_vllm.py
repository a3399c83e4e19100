"""usage: python read_vllm.py POSITIONS FOLDER...  (prints JSON; vllm is looked for on sys.path)"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from stand_ins import functions_of, stand_in
from transformers import AutoConfig

positions, folders = json.loads(sys.argv[1]), sys.argv[2:]
root = next(Path(p) for p in sys.path if (Path(p) / "vllm" / "config" / "model.py").is_file())
stand_in("vllm", "vllm.model_executor.layers.rotary_embedding", root)
import vllm.config  # noqa: E402  (a stand-in)
from vllm.model_executor.layers.rotary_embedding import get_rope  # noqa: E402

_SETTINGS = root / "vllm" / "transformers_utils"


def nested(parameters):
    return bool(parameters) and all(isinstance(value, dict) for value in parameters.values())


def longest(config, tokenizer_config):
    """What the engine takes as its maximum without being asked for one."""
    given = {"is_rope_parameters_nested": nested}
    functions_of(_SETTINGS / "config.py", ["iter_rope_parameters"], given)
    derive = functions_of(
        _SETTINGS / "model_arch_config_convertor.py", ["derive_max_model_len_and_key"], {}
    )["derive_max_model_len_and_key"]
    given |= {
        "logger": SimpleNamespace(warning=print, warning_once=print),
        "current_platform": SimpleNamespace(check_max_model_len=lambda length: length),
        "envs": SimpleNamespace(VLLM_ALLOW_LONG_MAX_MODEL_LEN=False),
    }
    verify = functions_of(
        root / "vllm" / "config" / "model.py", ["_get_and_verify_max_len"], given
    )["_get_and_verify_max_len"]
    derived = derive(SimpleNamespace(hf_text_config=config))
    arch = SimpleNamespace(derived_max_model_len_and_key=derived)
    return verify(config, arch, tokenizer_config, None, False, None)


found = {}
for folder in folders:
    config = AutoConfig.from_pretrained(folder)
    tokenizer = json.loads((Path(folder) / "tokenizer_config.json").read_text())
    window = longest(config, tokenizer)
    vllm.config.get_current_vllm_config = lambda w=window: SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=w)
    )
    sys.modules[
        "vllm.model_executor.layers.rotary_embedding.phi3_long_rope_scaled_rope"
    ].get_current_vllm_config = vllm.config.get_current_vllm_config
    rope = get_rope(
        config.head_dim,
        max_position=config.max_position_embeddings,
        rope_parameters=dict(config.rope_parameters),
        dtype=torch.float32,
    )
    table = getattr(rope, "long_short_cos_sin_cache", None)
    if table is None:
        rows = rope.cos_sin_cache[positions]
    else:
        shift = rope.original_max_position_embeddings if rope.use_long_rope else 0
        rows = table[[position + shift for position in positions]]
    cos, sin = rows.chunk(2, -1)
    found[folder] = {"cos": cos.tolist(), "sin": sin.tolist(), "window": window}
print(json.dumps(found))
