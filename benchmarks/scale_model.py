"""How restoration and CPT scale to hundreds of GPUs, predicted; with measured points where there are some.

    python -m benchmarks scale_model --out benchmarks/results/scale_model.json
    python -m benchmarks scale_model --plot docs/pictures/scaling.svg \
        --result benchmarks/results/scale_model.json --measured benchmarks/results/h200/scale.json

Assumptions, which the result file repeats: each reader has one window a batch and one batch a step; products
run at the rates measured on one H200; a GPU sends 360 GB/s within a node of eight and 40 GB/s between nodes;
nothing is sent while something is computed; layers are recomputed; windows are shared by as few GPUs as fit.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import record

GPUS = (8, 64, 512)
_A_NODE, _MEMORY = 8, 0.9 * 141e9
_TOKENS = {"restoration": 2_359_296, "cpt": 1_000_000_000}
_LLAMA: dict[str, Any] = {"architectures": ["LlamaForCausalLM"]}
_SHAPES: dict[str, dict[str, Any]] = {
    "LLaMA2-7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
    "LLaMA3-70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    },
}
_STAGES: dict[str, dict[str, Any]] = {
    "restoration": {"objective": {"relations": {"q": 1, "k": 1, "v": 1}}},
    "cpt at 128K": {"window": 131_072, "objective": {"relations": {}, "lm_weight": 1}},
    "cpt at 1M": {"window": 1_048_576, "objective": {"relations": {}, "lm_weight": 1}},
}


def predict(model: str, stage: str) -> list[dict[str, Any]]:
    """One entry for each number of GPUs."""
    from transformers import LlamaConfig

    from linearard.planning import choose_layout, planned_recipe
    from linearard.recipe import recipe_from_dict
    from linearard.train.stages import stage_arguments

    config = LlamaConfig(**_LLAMA, **_SHAPES[model])
    native = config.max_position_embeddings
    window = _STAGES[stage].get("window", native)
    fields = {"gradient_checkpointing": True, "sequences": 1, **_STAGES[stage], "window": window}
    source = {
        "model": {"name": model, "dtype": "bfloat16"},
        "rope": {"rope_type": "linear", "factor": max(2, 2 * window // native)},
        "adapter": {"kind": "lora", "r": 1024, "alpha": 2048},
        "data": {"train": "text", "validation": "text"},
        "stages": {"stage": fields},
    }
    found = planned_recipe(
        lambda overrides: recipe_from_dict(source, overrides), stage_arguments, None, config
    )
    entries = []
    for gpus in GPUS:
        several = (found.plan, found.stages, gpus, max(1, gpus // _A_NODE), _MEMORY)
        plan = choose_layout(*several, native_window=native)
        entry: dict[str, Any] = {"model": model, "stage": stage, "gpus": gpus, "window": window}
        if plan is not None:
            (step,) = plan.steps
            readers = gpus // plan.layout.sharing
            seconds = step.computing + step.communicating
            tokens = _TOKENS[stage.split()[0]]
            entry |= {
                "layout": str(plan.layout),
                "computing_s": step.computing,
                "communicating_s": step.communicating,
                "tokens_per_second": readers * window / seconds,
                "gib": plan.memory / 2**30,
                "hours": tokens / (readers * window) * seconds / 3600,
                "hours_for_tokens": tokens,
            }
        entries.append(entry)
    return entries


def plot(result: dict[str, Any], measured: dict[str, Any] | None, path: Path) -> None:
    """Seconds of a step and their share of communication, over GPUs."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    seconds, share = figure.subplots(1, 2)
    kinds = dict.fromkeys((e["model"], e["stage"]) for e in result["predicted"])
    for number, (model, stage) in enumerate(kinds):
        entries = [
            e
            for e in result["predicted"]
            if (e["model"], e["stage"]) == (model, stage) and "layout" in e
        ]
        if not entries:
            continue
        style = {"label": f"{model}, {stage}", "marker": "o", "color": f"C{number}"}
        gpus = [e["gpus"] for e in entries]
        total = [e["computing_s"] + e["communicating_s"] for e in entries]
        seconds.plot(gpus, total, **style)
        part = [e["communicating_s"] / t for e, t in zip(entries, total, strict=True)]
        share.plot(gpus, part, **style)
    for point in (measured or {}).get("points", []):
        seconds.plot(point["gpus"], point["seconds"], "k*", label=f"measured: {point['name']}")
    share.axhline(0.5, color="grey", linestyle=":", linewidth=1)
    seconds.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="seconds of a step, predicted")
    share.set(
        xscale="log", ylim=(0, 1), xlabel="GPUs", ylabel="share of sending, nothing beside it"
    )
    for axes in (seconds, share):
        axes.set_xticks(GPUS, [str(n) for n in GPUS])
        axes.minorticks_off()
    seconds.legend(fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "scale"}):
        figure.savefig(path, metadata={"Date": None})


def main(arguments: list[str]) -> None:
    """Predict into a result file, or draw one."""
    parser = argparse.ArgumentParser(description=__doc__)
    record.add_arguments(parser, required=False)
    parser.add_argument("--plot", type=Path, help="SVG to draw, of --result")
    parser.add_argument("--result", type=Path)
    parser.add_argument(
        "--measured", type=Path, help="of `python -m benchmarks scale`, where there is one"
    )
    args = parser.parse_args(arguments)
    if args.out:
        assumptions = [
            line for line in (__doc__ or "").split("Assumptions")[1].splitlines() if line
        ]
        predicted = [entry for m in _SHAPES for s in _STAGES for entry in predict(m, s)]
        result = {
            "assumptions": "Assumptions" + " ".join(assumptions),
            **record.circumstances(args.commit, "cpu"),
            "predicted": predicted,
        }
        record.write(args.out, result)
    if args.plot:
        result = json.loads(args.result.read_text())
        there = args.measured is not None and args.measured.is_file()
        measured = json.loads(args.measured.read_text()) if there else None
        plot(result, measured, args.plot)
