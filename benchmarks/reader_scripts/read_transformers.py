"""usage: python read_transformers.py POSITIONS FOLDER...  (prints JSON)"""

import json
import sys

import torch
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

positions, folders = json.loads(sys.argv[1]), sys.argv[2:]
found = {}
for folder in folders:
    config = AutoConfig.from_pretrained(folder)
    rotary = LlamaRotaryEmbedding(config=config)
    with torch.no_grad():
        cos, sin = rotary(torch.zeros(1, 1, 1), torch.tensor([positions]))
    half = cos.shape[-1] // 2
    found[folder] = {
        "cos": cos[0, :, :half].tolist(),
        "sin": sin[0, :, :half].tolist(),
        "window": config.max_position_embeddings,
    }
print(json.dumps(found))
