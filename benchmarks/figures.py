"""Every figure that may be claimed: a flat `key: number`, collected from the result files."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fault_tables import same_bits_figures, soak_figures
from benchmarks.ruler_table import ruler_figures
from benchmarks.scale_tables import scale_figures

RESULTS = Path(__file__).parent / "results"

#: Run folder -> (key of its figures, stage whose tokens and seconds count, view), in README order.
RUNS: dict[str, list[tuple[str, str | None, str]]] = {
    "h200/smollm2-135m-linear": [
        ("restoration.original.smollm2_135m", None, "original"),
        ("restoration.untrained.smollm2_135m_linear8", None, "stretched"),
        ("restoration.stage1.smollm2_135m_linear8", "restoration", "after restoration"),
        ("restoration.stage2.smollm2_135m_linear8", "cpt", "restored"),
    ],
    "cpu/demo": [
        ("demo.original.smollm2_135m", None, "original"),
        ("demo.untrained.smollm2_135m_yarn8", None, "stretched"),
        ("demo.aligned.smollm2_135m_yarn8", "alignment", "restored"),
    ],
}
#: Arms of the first sweep: key of the figures, arm, view, stage whose tokens and seconds count.
ARMS = [
    ("restoration.stage1.smollm2_135m_yarn8", "yarn_all_1e-3", "restored", "restoration"),
    (
        "restoration.paper_relations.smollm2_135m_linear8",
        "self_3e-3_w4096",
        "restored",
        "restoration",
    ),
]
MODEL = "smollm2_135m_x8"  # of the sweep that three seeds were run with


def collect() -> dict[str, float]:
    """Every figure, from the result files that exist."""
    figures: dict[str, float] = {}
    for folder, entries in RUNS.items():
        path = RESULTS / folder / "evaluation.json"
        if path.is_file():
            figures |= _restoration(json.loads(path.read_text()), entries)
    path = RESULTS / "h200" / "first-arms.json"
    if path.is_file():
        figures |= _arms(json.loads(path.read_text()))
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        for start, read in _READERS.items():
            for path in sorted(folder.glob(f"{start}*.json")):
                figures |= read(folder.name, json.loads(path.read_text()))
    figures |= _selection() | _recovery()
    return {key: round(value, 6) for key, value in sorted(figures.items())}


def selection_arms() -> list[dict[str, Any]]:
    path = RESULTS / "h200" / "selection-arms.json"
    return json.loads(path.read_text())["arms"] if path.is_file() else []


def _selection() -> dict[str, float]:
    """Figures of the arms that recipes were chosen by, as `selection.GROUP.ARM.…`."""
    figures = {}
    for arm in selection_arms():
        key = f"selection.{arm['group']}.{arm['slug']}"
        if arm["view"] != "original":
            figures |= {f"{key}.kl": arm["kl"], f"{key}.top1": arm["top1"]}
        parts = {"ppl": arm["perplexity"], "passkey": arm["passkey"]}
        parts["retrieval"] = arm.get("retrieval", {})
        for part, by_length in parts.items():
            figures |= {f"{key}.{part}_{_length(int(n))}": v for n, v in by_length.items()}
        figures[f"{key}.lambada_openai"] = arm["tasks"]["lambada_openai"]
        if arm["tokens"]:
            figures[f"{key}.tokens"] = arm["tokens"]
        for name in ("tasks_kept", "code_kl", "same_answers"):
            if name in arm:
                figures[f"{key}.{name}"] = arm[name]
    return figures


def _restoration(
    result: dict[str, Any], entries: list[tuple[str, str | None, str]]
) -> dict[str, float]:
    figures = {}
    for key, stage, view in entries:
        found = view_figures(result["views"], view)
        if stage and stage in result.get("stages", {}):
            found["tokens"] = result["stages"][stage]["tokens"]
            found["seconds"] = result["stages"][stage]["seconds"]
        figures |= {f"{key}.{name}": value for name, value in found.items()}
    return figures


def view_figures(views: dict[str, Any], view: str) -> dict[str, float]:
    """Figures of one view of an evaluation, by short name."""
    original, parts = views["original"], views.get(view, {})
    found = {}
    if "agreement" in parts:
        found |= {"kl": parts["agreement"]["kl"], "top1": parts["agreement"]["top1"]}
    for window, values in parts.get("perplexity", {}).items():
        name = f"ppl_{_length(int(window))}"
        found[name] = values["ppl"]
        found[f"{name}_ratio"] = values["ppl"] / original["perplexity"][window]["ppl"]
    for kind in ("passkey", "retrieval"):
        lengths: dict[int, list[float]] = {}
        for cell in parts.get(kind, {}).get("cells", []):
            lengths.setdefault(cell["length"], []).append(cell["accuracy"])
        for length, accuracies in lengths.items():
            found[f"{kind}_{_length(length)}"] = sum(accuracies) / len(accuracies)
    if "gain" in parts.get("context", {}):
        found["context_gain"] = parts["context"]["gain"]
        found["context_gain_over_original"] = parts["context"]["gain_over_original"]
    for task, values in parts.get("tasks", {}).items():
        found[task] = values["score"]
    if "raw_retention" in parts.get("tasks", {}).get("lambada_openai", {}):
        found["lambada_recovery"] = parts["tasks"]["lambada_openai"]["raw_retention"]
    if "task_average" in parts:
        average = parts["task_average"]
        found["tasks_recovery"] = average.get("raw_retention", 1.0)
        found |= {name: average[name] for name in ("same_answers", "answer_kl") if name in average}
    for name, values in parts.get("texts", {}).items():
        found[f"{name}.ppl_ratio"] = values["ppl"] / original["texts"][name]["ppl"]
        if "agreement" in values:
            found[f"{name}.kl"] = values["agreement"]["kl"]
    if "generation" in parts:
        found["repeated_4grams"] = parts["generation"]["repeated_4grams"]
        found["loops"] = parts["generation"]["loops"]
    return found


def _recovery() -> dict[str, float]:
    """Means over seeds of the sweep's arms, and their standard deviations as `…_sd`."""
    figures: dict[str, float] = {}
    arms = [
        (name, arm["seeds"].values())
        for path in sorted(RESULTS.glob("*/recovery.json"))
        for name, arm in json.loads(path.read_text())["arms"].items()
    ]
    for arm, seeds in arms:
        runs = [seed["figures"] for seed in seeds]
        for seed in seeds:
            original = {f"restoration.original.{MODEL}.{n}": v for n, v in seed["original"].items()}
            # The best recipe's, where evaluations of different days asked for different keys.
            figures = figures | original if arm == "best" else original | figures
        key = f"restoration.{arm.replace('-', '_')}.{MODEL}"
        for name in runs[0] if runs else ():
            values = [run[name] for run in runs]
            figures[f"{key}.{name}"] = statistics.mean(values)
            if len(values) > 1:
                figures[f"{key}.{name}_sd"] = statistics.stdev(values)
        if runs:
            figures[f"{key}.seeds"] = len(runs)
    return figures


_ARM_LABELS = {"KL to original (nats)": "kl", "top-1 agreement": "top1", "pass key": "passkey_2k"}


def _arms(result: dict[str, Any]) -> dict[str, float]:
    arms = {arm["name"]: arm for arm in result["arms"]}
    figures = {}
    for key, name, view, stage in ARMS:
        arm = arms[name]
        for label, values in arm["figures"].items():
            part = _ARM_LABELS.get(label) or _arm_part(label)
            if part is None or values.get(view) is None:
                continue
            figures[f"{key}.{part}"] = values[view]
            if part.startswith("ppl_"):
                figures[f"{key}.{part}_ratio"] = values[view] / values["original"]
        if stage:
            figures[f"{key}.tokens"] = sum(s["tokens"] for s in arm["stages"].values())
            figures[f"{key}.seconds"] = sum(s["seconds"] for s in arm["stages"].values())
    return figures


def _arm_part(label: str) -> str | None:
    if match := re.fullmatch(r"perplexity, ([\d,]+) tokens", label):
        return f"ppl_{_length(int(match[1].replace(',', '')))}"
    if match := re.fullmatch(r"(\w+) \((acc|acc_norm)\)", label):
        return match[1]
    return None


def _length(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)


def _kernel(gpu: str, result: dict[str, Any]) -> dict[str, float]:
    figures = {}
    for name, shape in result["shapes"].items():
        parts = {key: shape[key] for key in ("ms", "ratio_cudnn", "ratio_flash", "gemm_fraction")}
        parts["cudnn_ms"] = shape["cudnn"]["p50"]
        parts["any_order_ms"] = shape["any_order_ms"]
        parts["deterministic.ratio_cudnn"] = shape["deterministic"]["ratio_cudnn"]
        figures |= {f"kernel.{gpu}.{name}.{key}": v for key, v in parts.items() if v is not None}
    for name, layer in result.get("layers", {}).items():
        for part in ("ratio_share", "ratio_full"):
            if part in layer:
                figures[f"kernel.{gpu}.layer.{name}.{part}"] = layer[part]
    for name, shape in result.get("attention", {}).items():
        parts = {"ms": shape["ms"], "any_order_ms": shape["any_order_ms"]}
        parts |= {"ratio_cudnn": shape["ratio_cudnn"], "triton_ms": shape["triton"]["p50"]}
        parts |= {"ratio_flash": shape["ratio_flash"], "cudnn_ms": shape["cudnn"]["p50"]}
        parts["deterministic.ratio_cudnn"] = shape["deterministic"]["ratio_cudnn"]
        figures |= {f"kernel.{gpu}.attention.{name}.{k}": v for k, v in parts.items() if v}
    return figures


def _stage1(gpu: str, result: dict[str, Any]) -> dict[str, float]:
    """Steps of the paper's stages, by shape; `.small`, `.naive` and so on for other ways."""
    wanted = ("seconds_per_sequence", "peak_gib", "mfu", "relation_share", "stage_minutes")
    figures = {}
    for name, run in result["runs"].items():
        model, *way = name.split(".")
        stage = way.pop(0) if way[:1] == ["stage2"] else "stage1"
        key = ".".join([stage, _slug(model), gpu, *way])
        figures |= {f"{key}.{part}": run[part] for part in wanted if run.get(part)}
    for name, ratio in result.get("ratios", {}).items():
        key = f"stage1.{_slug(name)}.{gpu}.naive"
        figures |= {f"{key}.{part}_ratio": ratio[part] for part in ("time", "memory")}
    return figures


def _steps(gpu: str, result: dict[str, Any]) -> dict[str, float]:
    """Steps by objective and LoRA rank, over the teacher's forward alone, launched or as a CUDA graph."""
    key = f"step.{_slug(result['model'])}.{gpu}.r{result['rank']}"
    figures = {}
    for name, case in result["cases"].items():
        figures[f"{key}.{_slug(name)}.ms"] = case["ms"]["p50"]
        figures[f"{key}.{_slug(name)}.ratio_teacher"] = case["ratio_teacher"]
        if case.get("teacher_graph_ms"):
            ratio = case["ms"]["p50"] / case["teacher_graph_ms"]["p50"]
            figures[f"{key}.{_slug(name)}.ratio_teacher_graph"] = ratio
    return figures


def _same_training(gpu: str, result: dict[str, Any]) -> dict[str, float]:
    """How far fast training is from plain training, and plain training from itself (the furthest run)."""
    key = f"same_training.{_slug(result['model'].partition('.')[0])}.{gpu}"
    figures = {}
    for name in ("mean", "max", "weights"):
        figures[f"{key}.fast_{name}"] = result[f"fast_{name}"]
        figures[f"{key}.noise_{name}"] = max(result[f"noise_{name}"])
        if f"float32_fast_{name}" in result:
            figures[f"{key}.float32_fast_{name}"] = result[f"float32_fast_{name}"]
            figures[f"{key}.float32_plain_{name}"] = max(result[f"float32_plain_{name}"])
    for name in ("gradient_fast", "gradient_plain"):
        if name in result:
            figures[f"{key}.{name}"] = statistics.median(result[name])
    return figures


def _planner(gpu: str, result: dict[str, Any]) -> dict[str, float]:
    """How many planned runs were within the stated margins of measured ones."""
    figures = {f"planner.{gpu}.{name}": count for name, count in result["within"].items()}
    ended = [case["out_of_memory"] for case in result["too_large"].values()]
    return figures | {
        f"planner.{gpu}.said_too_large": len(ended),
        f"planner.{gpu}.ended": sum(ended),
    }


def _peaks(gpu: str, result: dict[str, Any]) -> dict[str, float]:
    """Planned and measured peaks of the recommended recipe's batches, by shape."""
    figures = {f"peaks.{gpu}.{name}": count for name, count in result["within"].items()}
    for case in result["cases"].values():
        name = f"{case['shape']}.{case['part']}.{_length(case['tokens'])}.{case['optimizer']}"
        for part in ("planned_gib", "peak_gib", "ratio"):
            if part in case:
                figures[f"peaks.{gpu}.{name}.{part}"] = case[part]
    return figures


def _attention(gpu: str, result: dict[str, Any]) -> dict[str, float]:
    """Attention of layers that people bring, beside flash attention at the same work."""
    figures = {}
    for name, case in result["cases"].items():
        key = f"attention.{gpu}.{_slug(name)}"
        figures |= {f"{key}.ms": case["ms"]["p50"], f"{key}.tflops": case["tflops"]}
        if "ratio" in case:
            figures |= {f"{key}.flash_ms": case["flash_ms"]["p50"], f"{key}.ratio": case["ratio"]}
    return figures


def _width(where: str, result: dict[str, Any]) -> dict[str, float]:
    """KL after restoring at each learning rate, by width of the model."""
    figures = {}
    for width, found in result["widths"].items():
        key = f"width.{where}.{width}"
        figures[f"{key}.untrained"] = found["untrained_kl"]
        figures |= {f"{key}.rate_{rate}": kl for rate, kl in found["kl"].items()}
    return figures


def _gguf(where: str, result: dict[str, Any]) -> dict[str, float]:
    """KL and top-1 of GGUFs in llama.cpp, by scaling: the worst length; in 8 bits the longest."""
    model = _slug(result["model"].removesuffix(".gguf").removesuffix("-Instruct"))
    end = "" if "smollm2" in model else f".{model}"
    figures = {}
    for name, found in result["scalings"].items():
        key = f"export.gguf.{name}{end}"
        if lengths := found.get("f32"):
            figures[f"{key}.kl"] = max(0.0, *(values["kl"] for values in lengths.values()))
            figures[f"{key}.top1"] = min(values["top1"] for values in lengths.values())
            figures[f"{key}.longest"] = max(map(int, lengths))
        if lengths := found.get("q8_0"):
            longest = max(lengths, key=int)
            figures |= {f"{key}.q8_0.{part}": lengths[longest][part] for part in ("kl", "top1")}
            figures[f"{key}.q8_0.longest"] = int(longest)
    return figures


def _exports_read(where: str, result: dict[str, Any]) -> dict[str, float]:
    """How many exported scalings a reader rotates by the trained table and window, by reader."""
    return {
        f"export.readers.{_slug(reader)}.equal": sum(map(reads_rightly, found.values()))
        for reader, found in result["readers"].items()
    }


def reads_rightly(said: dict[str, Any]) -> bool:
    """Whether a reader of an export rotates by its table and says its window."""
    return said["error"] < 2e-3 and said["window"] == 65536


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower()).strip("_")


#: Result files, by how their names start, in a folder named after the GPU.
def _restored(device: str, found: dict[str, Any]) -> dict[str, float]:
    """A run of `linearard restore`, as `restore.MODEL.…`; of the views original and stretched behind it."""
    rows = {row["label"]: row for row in found["rows"]}
    figures = {"tokens": found["tokens"], "seconds": found["seconds"]}
    figures["planned_gib"] = found["planned_bytes"] / 2**30
    if found["peak_bytes"]:
        figures["peak_gib"] = found["peak_bytes"] / 2**30
    named = {
        "kl": "KL to original (nats)",
        "top1": "top-1 agreement",
        "tasks_kept": "task average / original's",
        "same_answers": "answers as the original's",
    }
    for view, start in (("restored", ""), ("stretched", "stretched."), ("original", "original.")):
        for key, label in named.items():
            if label in rows and view in rows[label]:
                figures[f"{start}{key}"] = rows[label][view]
        for label, row in rows.items():
            kind, _, length = label.partition(", ")
            if not length.endswith(" tokens") or view not in row:
                continue
            short = {"pass key": "passkey", "retrieval": "retrieval", "perplexity": "ppl"}[kind]
            figures[f"{start}{short}_{length.removesuffix(' tokens').replace(',', '')}"] = row[view]
        for kind in ("passkey", "retrieval"):
            values = [v for k, v in figures.items() if k.startswith(f"{start}{kind}_")]
            if values:
                figures[f"{start}{kind}_min"] = min(values)
    return {f"restore.{found['name']}.{key}": value for key, value in figures.items()}


_READERS: dict[str, Callable[[str, dict[str, Any]], dict[str, float]]] = {
    "relation_kl": _kernel,
    "stage1": _stage1,
    "training_step": _steps,
    "planner": _planner,
    "peaks": _peaks,
    "attention": _attention,
    "same_training": _same_training,
    "width": _width,
    "gguf": _gguf,
    "readers": _exports_read,
    "restored": _restored,
    "soak": soak_figures,
    "same_bits": same_bits_figures,
    "ruler": ruler_figures,
    "scale": scale_figures,
}
