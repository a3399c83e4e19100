"""Write `benchmarks/results/summary.json` and the tables of README and docs from the result files.

    python -m benchmarks.summary            write
    python -m benchmarks.summary --check    exit 1 if what is written differs (used by the tests)

`summary.json` is a flat object of `key: number`. A figure that is not in it is claimed nowhere.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "RECIPES.md")
SUMMARY = RESULTS / "summary.json"

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
        ("demo.untrained.smollm2_135m_linear8", None, "stretched"),
        ("demo.aligned.smollm2_135m_linear8", "alignment", "after alignment"),
        ("demo.restored.smollm2_135m_linear8", "restoration", "restored"),
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
_MODEL = "smollm2_135m_x8"  # of the sweep that three seeds were run with
_TITLES = {
    "original": "original, native RoPE",
    "untrained": "linear, untrained",
    "stage1": "stage 1 (restoration)",
    "stage2": "stage 2 (CPT), after stage 1",
    "paper_relations": "linear: stage 1, the paper's relations alone",
    "aligned": "stage 1 (each layer alone)",
    "restored": "stage 2 (all together), after stage 1",
}


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
    path = RESULTS / "h200" / "relation_kl.json"
    if path.is_file():
        figures |= _kernel(json.loads(path.read_text()))
    figures |= _selection() | _recovery()
    return {key: round(value, 6) for key, value in sorted(figures.items())}


def _selection_arms() -> list[dict[str, Any]]:
    path = RESULTS / "h200" / "selection-arms.json"
    return json.loads(path.read_text())["arms"] if path.is_file() else []


def _selection() -> dict[str, float]:
    """Figures of the arms that recipes were chosen by, as `selection.GROUP.ARM.…`."""
    figures = {}
    for arm in _selection_arms():
        key = f"selection.{arm['group']}.{arm['slug']}"
        if arm["view"] != "original":
            figures |= {f"{key}.kl": arm["kl"], f"{key}.top1": arm["top1"]}
        parts = {"ppl": arm["perplexity"], "passkey": arm["passkey"]}
        for part, by_length in parts.items():
            figures |= {f"{key}.{part}_{_length(int(n))}": v for n, v in by_length.items()}
        figures[f"{key}.lambada_openai"] = arm["tasks"]["lambada_openai"]
        if arm["tokens"]:
            figures[f"{key}.tokens"] = arm["tokens"]
    return figures


def _restoration(
    result: dict[str, Any], entries: list[tuple[str, str | None, str]]
) -> dict[str, float]:
    figures = {}
    for key, stage, view in entries:
        found = _view_figures(result["views"], view)
        if stage and stage in result.get("stages", {}):
            found["tokens"] = result["stages"][stage]["tokens"]
            found["seconds"] = result["stages"][stage]["seconds"]
        figures |= {f"{key}.{name}": value for name, value in found.items()}
    return figures


def _view_figures(views: dict[str, Any], view: str) -> dict[str, float]:
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
    for task, values in parts.get("tasks", {}).items():
        found[task] = values["score"]
    if "raw_retention" in parts.get("tasks", {}).get("lambada_openai", {}):
        found["lambada_recovery"] = parts["tasks"]["lambada_openai"]["raw_retention"]
    if "task_average" in parts:
        found["tasks_recovery"] = parts["task_average"].get("raw_retention", 1.0)
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
    for arm in sorted((RESULTS / "h200" / "recovery").glob("*/")):
        runs = []
        for path in sorted(arm.glob("seed-*/evaluation.json")):
            result = json.loads(path.read_text())
            found = _view_figures(result["views"], result["sweep"]["view"])
            for part in ("tokens", "seconds"):
                found[part] = sum(stage[part] for stage in result["stages"].values())
            runs.append(found)
            original = _view_figures(result["views"], "original")
            figures |= {f"restoration.original.{_MODEL}.{n}": v for n, v in original.items()}
        key = f"restoration.{arm.name.replace('-', '_')}.{_MODEL}"
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


def _kernel(result: dict[str, Any]) -> dict[str, float]:
    figures = {}
    for name, shape in result["shapes"].items():
        parts = {key: shape[key] for key in ("ms", "ratio_cudnn", "ratio_flash", "gemm_fraction")}
        parts["cudnn_ms"] = shape["cudnn"]["p50"]
        figures |= {f"kernel.h200.{name}.{key}": v for key, v in parts.items() if v is not None}
    return figures


def tables(figures: dict[str, float]) -> dict[str, str]:
    """The tables by marker name, in Markdown."""
    groups = sorted({arm["group"] for arm in _selection_arms()})
    return {f"selection-{group}": _selection_table(figures, group) for group in groups} | {
        "restoration": _restoration_table(figures, "restoration", "2k", ["32k"], ["2k"]),
        "demo": _restoration_table(figures, "demo", "512", [], []),
        "kernel": _kernel_table(figures),
    }


def _restoration_table(
    figures: dict[str, float], family: str, window: str, longer: list[str], lengths: list[str]
) -> str:
    columns = {
        "KL to original (nats)": ("kl", ".3f"),
        "top-1 agreement": ("top1", ".3f"),
        f"perplexity, {window} tokens": (f"ppl_{window}", ".1f"),
        "ratio to original": (f"ppl_{window}_ratio", ".2f"),
        **{f"perplexity, {w}": (f"ppl_{w}", ".1f") for w in longer},
        **{f"pass key, {n}": (f"passkey_{n}", ".2f") for n in lengths},
        "LAMBADA": ("lambada_openai", ".3f"),
        "tokens": ("tokens", ",.0f"),
        "training, s": ("seconds", ",.0f"),
    }
    named = [entry[0] for entries in RUNS.values() for entry in entries]
    names = [key for key in [*named, *(entry[0] for entry in ARMS)] if key.startswith(family)]
    names = [name for name in names if any(key.startswith(f"{name}.") for key in figures)]
    columns = {
        title: (part, form)
        for title, (part, form) in columns.items()
        if any(f"{name}.{part}" in figures for name in names)
    }
    rows = []
    for name in names:
        cells = [_cell(figures.get(f"{name}.{part}"), form) for part, form in columns.values()]
        scaling = "YaRN: " if name.endswith("yarn8") else ""
        rows.append([scaling + _TITLES[name.split(".")[1]], *cells])
    return _markdown(["SmolLM2-135M, x 8", *columns], rows)


def _selection_table(figures: dict[str, float], group: str) -> str:
    columns = {
        "KL": ("kl", ".4f"),
        "top-1": ("top1", ".3f"),
        **{f"ppl {n}": (f"ppl_{n}", ".1f") for n in ("2k", "8k", "32k", "64k")},
        **{f"pass key {n}": (f"passkey_{n}", ".1f") for n in ("2k", "8k", "32k", "64k")},
        "LAMBADA": ("lambada_openai", ".2f"),
        "tokens": ("tokens", ",.0f"),
    }
    arms = [arm for arm in _selection_arms() if arm["group"] == group]
    keys = [f"selection.{group}.{arm['slug']}" for arm in arms]
    columns = {
        title: (part, form)
        for title, (part, form) in columns.items()
        if any(f"{key}.{part}" in figures for key in keys)
    }
    rows = [
        [arm["label"], *(_cell(figures.get(f"{key}.{p}"), form) for p, form in columns.values())]
        for arm, key in zip(arms, keys, strict=True)
    ]
    return _markdown(["arm", *columns], rows)


def _kernel_table(figures: dict[str, float]) -> str:
    names = {key.rpartition(".")[0] for key in figures if key.startswith("kernel.")}
    names = sorted(names, key=lambda name: figures[f"{name}.ms"])
    parts = {
        "forward + backward, ms": ("ms", ".2f"),
        "cuDNN attention, ms": ("cudnn_ms", ".2f"),
        "ratio to cuDNN": ("ratio_cudnn", ".2f"),
        "ratio to flash": ("ratio_flash", ".2f"),
        "share of GEMM rate": ("gemm_fraction", ".2f"),
    }
    rows = [
        [
            name.removeprefix("kernel."),
            *(_cell(figures.get(f"{name}.{p}"), f) for p, f in parts.values()),
        ]
        for name in names
    ]
    return _markdown(["one relation, causal", *parts], rows)


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _markdown(headers: list[str], rows: list[list[str]]) -> str:
    right = ["left"] + ["right"] * (len(headers) - 1)
    return tabulate(rows, headers, tablefmt="github", colalign=right, disable_numparse=True)


def render(page: str, figures: dict[str, float]) -> str:
    """The page with every `<!-- table:NAME -->` block filled anew."""
    for name, table in tables(figures).items():
        block = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- /table -->)", re.DOTALL)
        page = block.sub(lambda match, t=table: f"{match[1]}{t}\n{match[2]}", page)
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    args = parser.parse_args()
    figures = collect()
    wanted = {page: render(page.read_text(), figures) for page in PAGES}
    wanted[SUMMARY] = json.dumps(figures, indent=1) + "\n"
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if args.check:
            print(
                f"{path.name} is not what the result files give: run python -m benchmarks.summary"
            )
        else:
            path.write_text(wanted[path])
            print(f"wrote {path.name}")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
