"""usage: python read_sglang.py POSITIONS FOLDER...  (prints JSON; sglang is looked for on sys.path)"""

import json
import sys
from pathlib import Path

import torch
from stand_ins import functions_of, stand_in
from transformers import AutoConfig

positions, folders = json.loads(sys.argv[1]), sys.argv[2:]
_COMMON = Path("sglang", "srt", "utils", "hf_transformers", "common.py")
root = next(Path(p) for p in sys.path if (Path(p) / _COMMON).is_file())
stand_in("sglang", "sglang.srt.layers.rotary_embedding", root)
from sglang.srt.layers.rotary_embedding import get_rope  # noqa: E402

length = functions_of(
    root / _COMMON, ["get_context_length"], {"CONTEXT_LENGTH_KEYS": ["max_position_embeddings"]}
)["get_context_length"]
found = {}
for folder in folders:
    config = AutoConfig.from_pretrained(folder)
    parameters = dict(config.rope_parameters)
    window = length(config)
    rope = get_rope(
        config.head_dim,
        config.head_dim,
        max_position=config.max_position_embeddings,
        base=parameters["rope_theta"],
        rope_scaling=parameters,
        dtype=torch.float32,
    )
    table = getattr(rope, "long_short_cos_sin_cache", None)
    if table is None:
        rows = rope.cos_sin_cache[positions]
    else:  # it takes the long factors where a position is beyond the original window
        shift = rope.original_max_position_embeddings
        rows = table[[position + shift for position in positions]]
    cos, sin = rows.chunk(2, -1)
    found[folder] = {"cos": cos.tolist(), "sin": sin.tolist(), "window": window}
print(json.dumps(found))
