"""Time and memory of one training step by objective, beside the teacher's forward alone.

    python -m benchmarks training_step --model smollm2-135m --out FILE.json
    python -m benchmarks training_step --model llama2-7b --rank 1024 --tokens 4096 --batch 1 --out FILE.json

Models have the exact shape and random weights; scaling by 8 (linear, or Llama 3.1's own kind), LoRA on q,
k, v. A step is
forward, backward, clipping and AdamW. Each case is taken in turns with the teacher's forward, each as often
behind every other; on a CPU the figures are for direction only. The file it writes:

    device, torch, transformers, python, commit, date      where and when
    model, tokens, batch, rank, parameters, trained        what; tokens of a sequence
    cases: NAME -> ms and teacher_ms (the teacher's forward alone, in turns with it): {p20, p50, p80},
        ratio_teacher (p50 over p50), tokens_per_second, and on a GPU peak_gib, weights and recording
        included, and teacher_graph_ms, the same forward as a CUDA graph
    graphs: whether steps are replayed as CUDA graphs, as the trainer does
    profile: with --profile CASE, its kernels by time on the device: name, ms and calls of one step
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from benchmarks.record import add_arguments, circumstances, in_turns, quantiles, write
from linearard.distill import ObjectiveConfig, RestorationModule
from linearard.model import AdapterConfig, ChunkedCausalLM, RestorableModel
from linearard.train.clipping import clip_gradients
from linearard.train.cuda_graphs import CapturedSteps, find_gradients

MODELS: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
    },
    "llama2-7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    "llama3-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    },
    "mistral-7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    },
    "tiny": {
        "vocab_size": 1000,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
    },
}
MODELS["llama31-8b"] = MODELS["llama3-8b"] | {
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
SELF = {"q": 1.0, "k": 1.0, "v": 1.0}
CASES: dict[str, dict[str, Any]] = {
    "paper": {"relations": SELF},
    "all": {"relations": SELF | {"qk": 1.0}},
    "all+logit": {"relations": SELF | {"qk": 1.0}, "logit_weight": 1.0, "logit_positions": None},
    "logit": {"relations": {}, "logit_weight": 1.0, "logit_positions": None},
    "lm": {"relations": {}, "lm_weight": 1.0},
    "teacher-inputs-qk": {"relations": {"qk": 1.0}, "inputs": "teacher"},
    "teacher-inputs-qk-v": {"relations": {"qk": 1.0, "v": 1.0}, "inputs": "teacher"},
}


def random_model(name: str, device: str) -> Any:
    """The architecture with random weights in bfloat16, built where it will run."""
    shape = MODELS[name]
    kind = transformers.MistralConfig if "sliding_window" in shape else transformers.LlamaConfig
    torch.manual_seed(0)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(kind(**shape), dtype=torch.bfloat16)


def pack(model: Any) -> None:
    """Linear layers of the decoder in 4 bits, as `model.load_in_4bit` loads them."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    options = {"quant_type": "nf4", "compress_statistics": False}
    for parent in list(model.get_decoder().layers.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                packed = Linear4bit(
                    child.in_features, child.out_features, bias=False, device="meta"
                )
                packed.compute_dtype = child.weight.dtype
                weight = Params4bit(child.weight.data, requires_grad=False, **options)
                packed.weight = weight.to(child.weight.device)
                setattr(parent, name, packed)
    model.is_loaded_in_4bit = True  # which peft looks at


def build(
    name: str, rank: int, device: str, dropout: float = 0.0, packed: bool = False
) -> RestorableModel:
    """A random model with its views and LoRA."""
    adapter = AdapterConfig(r=rank, alpha=2.0 * rank, dropout=dropout)
    native = MODELS[name].get("rope_scaling")
    scaling = {**native, "factor": 64.0} if native else {"rope_type": "linear", "factor": 8}
    model = random_model(name, device)
    if packed:
        pack(model)
    restorable = RestorableModel(model, None, scaling, adapter)
    restorable.model.to(device)
    return restorable


def training_step(
    restorable: RestorableModel,
    settings: dict[str, Any],
    ids: torch.Tensor,
    recompute: bool,
    graphs: bool = False,
) -> Callable[[], None]:
    """A function that makes one step of this objective, as the trainer does."""
    module = RestorationModule(restorable, ObjectiveConfig(**settings)).train()
    if recompute:
        module.gradient_checkpointing_enable()
    parameters = restorable.adapter.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=ids.is_cuda)

    def run(input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        with restorable.tap.step():
            with torch.autocast(ids.device.type, torch.bfloat16):
                loss = module(input_ids)["loss"]
            find_gradients(loss, parameters)
        return {"loss": loss.detach()}

    run_batch = CapturedSteps(run, parameters) if graphs else lambda inputs: run(**inputs)

    def step() -> None:
        with restorable.adapter.without_casts():
            run_batch({"input_ids": ids})
        clip_gradients(parameters, 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(candidates: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, Any]:
    """Milliseconds {p20, p50, p80} of each, in turns after four unmeasured rounds."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    times: dict[str, list[float]] = {name: [] for name in candidates}
    for name in in_turns(candidates, rounds + 4):
        wait()
        start = time.perf_counter()
        candidates[name]()
        wait()
        times[name].append(1000 * (time.perf_counter() - start))
    return {name: quantiles(t[4:]) for name, t in times.items()}


def profile(run: Callable[[], None], kernels: int = 40) -> list[dict[str, Any]]:
    """The kernels of one step by time on the device."""
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as record:
        run()
        torch.cuda.synchronize()
    events = [e for e in record.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda e: -e.self_device_time_total)
    return [
        {"name": e.key[:110], "ms": round(e.self_device_time_total / 1000, 3), "calls": e.count}
        for e in events[:kernels]
    ]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks training_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--model", choices=MODELS, default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing")
    parser.add_argument("--no-graphs", action="store_true", help="launch kernel by kernel")
    parser.add_argument("--profile", choices=CASES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    device = options.device
    restorable = build(options.model, options.rank, device)
    vocabulary = restorable.config.vocab_size
    ids = torch.randint(vocabulary, (options.batch, options.tokens), device=device)

    graphs = device == "cuda" and not (options.recompute or options.no_graphs)
    language_model = ChunkedCausalLM(restorable.model)

    def forward(input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad(), restorable.view("original"):
            return {"hidden": language_model.hidden(input_ids)}

    plain = {"teacher": lambda: forward(ids)}
    if graphs:
        recorded = CapturedSteps(forward, [])
        plain["teacher_graph"] = lambda: recorded({"input_ids": ids})

    times, peaks, found = {}, {}, None
    for name in options.cases:  # a case at a time: each holds an optimizer's state
        step = training_step(restorable, CASES[name], ids, options.recompute, graphs)
        gc.collect()
        if device == "cuda":  # a replayed graph allocates nothing: count while it is recorded
            torch.cuda.reset_peak_memory_stats()
        times[name] = timed(plain | {"step": step}, options.rounds, device)
        if device == "cuda":
            peaks[name] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        if name == options.profile and device == "cuda":
            found = profile(step)
        print(name, times[name], peaks.get(name, ""), flush=True)
    count = options.batch * options.tokens
    result = {
        **circumstances(options.commit, device),
        "model": options.model,
        "tokens": options.tokens,
        "batch": options.batch,
        "rank": options.rank,
        "recompute": options.recompute,
        "graphs": graphs,
        "parameters": sum(p.numel() for p in restorable.model.parameters()),
        "trained": sum(p.numel() for p in restorable.adapter.parameters()),
        "cases": {
            name: {
                "ms": row["step"],
                "teacher_ms": row["teacher"],
                "ratio_teacher": round(row["step"]["p50"] / row["teacher"]["p50"], 3),
                "teacher_graph_ms": row.get("teacher_graph"),
                "tokens_per_second": round(1000 * count / row["step"]["p50"]),
                "peak_gib": peaks.get(name),
            }
            for name, row in times.items()
        },
    }
    if found is not None:
        result["profile"] = {"case": options.profile, "kernels": found}
    write(options.out, result)
    print(f"wrote {options.out}")
