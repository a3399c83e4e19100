"""Planned and measured peaks of the recommended recipe on the shapes of seven families.

    python -m benchmarks planner --shapes --out benchmarks/results/h200/peaks.json

Four minutes on a GPU. Models have the layers of the named ones, some fewer of them, and random weights. Every
case is a stage of one kind of batch of `smollm2-135m-64k`: `short`, four windows of 2,048 tokens with
relations, output, hidden states and text; `long`, one long window with the output of a teacher that reads
4,096 tokens at a time, and recall. A few steps of the trainer run, until they are recorded. The file:

    device, torch, transformers, python, commit, date      where and when
    cases: NAME -> shape, layers, part, tokens, optimizer, kind; peak_gib (allocated), planned_gib and ratio;
        reserved_gib (PyTorch's blocks); moment, memory: planned GiB by part; seconds, of all steps;
        held: with --explain, GiB by the lines that held most at the peak; error: why a case did not run
    within: how many cases are within 10 % of the peak, of how many
    left_out: cases for which no time was left
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from benchmarks.record import add_arguments, circumstances, write
from linearard.counting.shapes import ModelShape
from linearard.distill import ObjectiveConfig
from linearard.errors import UserError
from linearard.model import AdapterConfig, RestorableModel
from linearard.planning.run_plan import plan_run
from linearard.recipe import RestorationConfig
from linearard.train.trainer import RestorationTrainer

GIB = 2**30
NATIVE, RANK, STEPS = 8192, 128, 5
#: Class of the configuration, and its fields: real layers, of the larger ones a few.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (  # Llama 3.2 1B
        "LlamaConfig",
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 4,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
    ),
    "qwen2": (  # Qwen2.5 0.5B
        "Qwen2Config",
        {
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 8,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3": (  # Qwen3 0.6B
        "Qwen3Config",
        {
            "vocab_size": 151936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 8,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3": (  # Gemma 3 270M, all of it
        "Gemma3TextConfig",
        {
            "vocab_size": 262144,
            "hidden_size": 640,
            "intermediate_size": 2048,
            "num_hidden_layers": 18,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 512,
            "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
            "tie_word_embeddings": True,
        },
    ),
    "olmo2": (  # OLMo 2 1B
        "Olmo2Config",
        {
            "vocab_size": 100352,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 4,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
        },
    ),
    "phi3": (  # Phi-3 mini
        "Phi3Config",
        {
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 4,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "sliding_window": 2047,
            "pad_token_id": 0,
        },
    ),
    "mistral": (  # Mistral 7B
        "MistralConfig",
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 4,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
    ),
    "tiny": (  # for a try on a CPU
        "LlamaConfig",
        {
            "vocab_size": 300,
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    ),
}
PARTS: dict[str, dict[str, Any]] = {
    "short": {
        "relations": {"qk": 1.0, "v": 1.0},
        "logit_weight": 1.0,
        "logit_positions": None,
        "hidden_weight": 1.0,
        "hidden_layers": [-1],
        "lm_weight": 0.3,
        "repeated_weight": 0.3,
    },
    "long": {
        "relations": {},
        "logit_weight": 1.0,
        "logit_positions": None,
        "teacher_window": 4096,
        "repeated_weight": 3.0,
    },
}


@dataclass(frozen=True)
class Case:
    shape: str
    part: str
    tokens: int
    optimizer: str = "muon"  # or adamw, with LoRA

    @property
    def batch(self) -> int:
        return 4 if self.part == "short" else 1

    @property
    def kind(self) -> str:
        return "direct" if self.optimizer == "muon" else "lora"

    @property
    def name(self) -> str:
        return f"{self.shape}, {self.part}, {self.tokens}, {self.optimizer}"


def all_cases(shapes: list[str]) -> list[Case]:
    """Most wanted first."""
    cases = [Case(shape, "long", 65536) for shape in shapes]
    cases += [Case("gemma3", "long", 131072)] * ("gemma3" in shapes)
    cases += [Case(shape, "short", 2048) for shape in shapes]
    cases += [Case(shape, "long", 65536, "adamw") for shape in shapes]
    cases += [Case(shape, "short", 2048, "adamw") for shape in shapes]
    return cases


def configured(case: Case) -> tuple[Any, AdapterConfig]:
    name, fields = SHAPES[case.shape]
    config = getattr(transformers, name)(**fields, max_position_embeddings=NATIVE)
    return config, AdapterConfig(kind=case.kind, r=RANK, alpha=2.0 * RANK, dropout=0.0)


class RecallWindows(torch.utils.data.Dataset):
    """Windows of random tokens, of which some are said to repeat earlier ones."""

    def __init__(self, vocabulary: int, tokens: int, count: int) -> None:
        make = torch.Generator().manual_seed(0)
        self._ids = torch.randint(vocabulary, (count, tokens), generator=make)
        self._repeated = torch.arange(tokens) % 7 == 6

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._ids[index], "repeated": self._repeated}


def arguments_of(case: Case, device: str) -> RestorationConfig:
    return RestorationConfig(
        output_dir=tempfile.gettempdir(),
        window=case.tokens,
        objective=ObjectiveConfig(**PARTS[case.part]),
        per_device_train_batch_size=case.batch,
        muon=case.optimizer == "muon",
        max_steps=STEPS,
        learning_rate=1e-6,
        bf16=True,
        use_cpu=device == "cpu" or not torch.cuda.is_available(),
        save_strategy="no",
        logging_steps=10**6,
        disable_tqdm=True,
    )


def planned(case: Case, device: str) -> dict[str, Any]:
    config, adapter = configured(case)
    plan = plan_run(
        ModelShape.of(config, adapter),
        {"stage": arguments_of(case, device)},
        native_window=NATIVE,
        mixed=True,
        fused=device == "cuda",
        rates=None,
    )
    (part,) = plan.stages[0].parts
    return {
        "planned_gib": round(part.memory.peak / GIB, 3),
        "moment": part.memory.moment,
        "memory": {name: round(x / GIB, 3) for name, x in part.memory.parts.items()},
    }


def train(case: Case, device: str) -> None:
    """A few steps: plain ones, the recorded one, and replayed ones."""
    config, adapter = configured(case)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    factor = max(2, case.tokens // NATIVE)
    restorable = RestorableModel(model, None, {"rope_type": "linear", "factor": factor}, adapter)
    restorable.model.to(device)
    windows = RecallWindows(config.vocab_size, case.tokens, case.batch * STEPS)
    RestorationTrainer(restorable, arguments_of(case, device), windows).train()


def held_at_peak(events: list[dict[str, Any]], most: int = 14) -> dict[str, float]:
    """GiB by the lines of code whose memory was held at the fullest moment."""
    live: dict[int, dict[str, Any]] = {}
    total = peak = 0
    fullest = 0
    for at, event in enumerate(events):
        if event["action"] == "alloc":
            live[event["addr"]] = event
            total += event["size"]
        elif event["action"] == "free_completed" and event["addr"] in live:
            total -= live.pop(event["addr"])["size"]
        if total > peak:
            peak, fullest = total, at
    live = {}
    for event in events[: fullest + 1]:
        if event["action"] == "alloc":
            live[event["addr"]] = event
        elif event["action"] == "free_completed":
            live.pop(event["addr"], None)
    found: Counter[str] = Counter()
    for event in live.values():
        found[_line(event.get("frames", []))] += event["size"]
    return {line: round(size / GIB, 3) for line, size in found.most_common(most)}


def _line(frames: list[dict[str, Any]]) -> str:
    """The innermost line of this package or of transformers, and what it called."""
    ours = ("linearard", "transformers/models", "benchmarks")
    names = [f"{f['filename'].rsplit('/', 1)[-1]}:{f['line']} {f['name']}" for f in frames]
    at = next((i for i, f in enumerate(frames) if any(x in f["filename"] for x in ours)), None)
    if at is None:
        return " < ".join(names[:3]) or "unknown"
    return " < ".join(names[at : at + 2])


def compare(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    device = options.device
    row: dict[str, Any] = {**vars(case), "kind": case.kind, "batch": case.batch}
    row["layers"] = SHAPES[case.shape][1]["num_hidden_layers"]
    on_gpu, start = device == "cuda", time.perf_counter()
    try:
        row |= planned(case, device)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        if options.explain:
            torch.cuda.memory._record_memory_history(stacks="python", max_entries=10**6)
        train(case, device)
    except (UserError, RuntimeError) as error:  # torch.OutOfMemoryError is one
        row["error"] = f"{type(error).__name__}: {error}"[:500]
    finally:
        if options.explain:
            events = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
            row["held"] = held_at_peak(events)
            torch.cuda.memory._record_memory_history(enabled=None)
    row["seconds"] = round(time.perf_counter() - start, 1)
    if on_gpu:
        row["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 3)
        row["reserved_gib"] = round(torch.cuda.max_memory_reserved() / GIB, 3)
        if "error" not in row:
            row["ratio"] = round(row["planned_gib"] / row["peak_gib"], 3)
    return row


def table(rows: dict[str, dict[str, Any]]) -> str:
    """As text: a line a case."""
    lines = [f"{'case':38}{'planned':>9}{'measured':>9}{'ratio':>7}{'reserved':>9}{'s':>6}"]
    for name, row in rows.items():
        shown = [row.get(key, "") for key in ("planned_gib", "peak_gib", "ratio", "reserved_gib")]
        line = f"{name:38}{shown[0]:>9}{shown[1]:>9}{shown[2]:>7}{shown[3]:>9}{row['seconds']:>6}"
        lines.append(line + (f"  {row['error'][:120]}" if "error" in row else ""))
        lines += [f"    {size:8.3f}  {line}" for line, size in row.get("held", {}).items()]
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks planner --shapes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    known = [name for name in SHAPES if name != "tiny"]
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), help="default: all")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--optimizers", nargs="+", choices=("muon", "adamw"))
    parser.add_argument("--explain", action="store_true", help="say which lines held the memory")
    parser.add_argument("--seconds", type=float, default=225, help="start no case after this long")
    parser.add_argument("--tokens", type=int, nargs="+", help="only cases of these windows")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    result: dict[str, Any] = {
        **circumstances(options.commit, options.device),
        "cases": {},
        "left_out": [],
    }
    if options.device == "cpu":
        cases = [Case("tiny", part, 96, opt) for part in PARTS for opt in ("muon", "adamw")]
    else:
        cases = all_cases(options.shapes or known)
    for case in cases:
        wanted = case.part in options.parts
        wanted &= case.optimizer in (options.optimizers or ("muon", "adamw"))
        if not wanted or case.tokens not in (options.tokens or [case.tokens]):
            continue
        if time.perf_counter() - start > options.seconds:
            result["left_out"].append(case.name)
            continue
        row = result["cases"][case.name] = compare(case, options)
        print(table({case.name: row}), flush=True)
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
        ratios = [one["ratio"] for one in result["cases"].values() if "ratio" in one]
        result["within"] = {
            "cases": len(result["cases"]),
            "peak_10_percent": sum(abs(ratio - 1) <= 0.1 for ratio in ratios),
        }
        write(options.out, result)  # after every case: a killed run leaves what it has
    print(table(result["cases"]))
    print(f"{result.get('within')}; wrote {options.out} after {time.perf_counter() - start:.0f} s")
