"""Write `benchmarks/results/summary.json` and the tables of README and docs from the result files.

    python -m benchmarks.summary            write
    python -m benchmarks.summary --check    exit 1 if what is written differs (used by the tests)

`summary.json` is a flat object of `key: number`. A figure that is not in it is claimed nowhere.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from tabulate import tabulate

from benchmarks.fault_tables import fault_tables
from benchmarks.figures import ARMS, MODEL, RESULTS, RUNS, collect, reads_rightly, selection_arms
from benchmarks.models import models_tables

ROOT = Path(__file__).parent.parent
#: Every page that may hold a table between `<!-- table:NAME -->` and `<!-- /table -->`.
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
SUMMARY = RESULTS / "summary.json"

_TITLES = {
    "original": "original, native RoPE",
    "untrained": "linear, untrained",
    "stage1": "stage 1 (restoration)",
    "stage2": "stage 2 (CPT), after stage 1",
    "paper_relations": "linear: stage 1, the paper's relations alone",
    "aligned": "stage 1 (each layer alone)",
    "restored": "stage 2 (all together), after stage 1",
}

#: Arms of recovery.yaml, and the first of them run again, in the order of their table.
_ARMS = {
    "original": "original",
    "best": "`smollm2-135m-64k`",
    "best_again": "a second run of it",
    "linear": "`smollm2-135m-64k-linear`",
    "paper": "`smollm2-135m-64k-paper`",
    "logit_own": "logit KL alone, Muon, own text",
    "cpt": "continued pre-training alone",
    "longred_muon": "LongReD, Muon",
    "yarn_untrained": "YaRN, untrained",
    "start": "YaRN x 10 with attention factor 1, ramp 1 to 4, untrained",
    "dynamic_untrained": "dynamic NTK, untrained",
}
#: What earlier states of recovery.yaml gave.
_EARLIER = {
    "before_next_token": "`smollm2-135m-64k` before the thirteenth round",
    "linear_last_hidden": "`smollm2-135m-64k-linear` before the fourteenth round",
    "logit": "logit KL alone, AdamW, books alone, YaRN's ramp",
    "cpt_ramp": "continued pre-training alone, ramp 1 to 4",
    "longred": "LongReD, AdamW",
}
#: Those of the README: today's recipes and what they are compared with.
_SHORT = [
    "original",
    "best",
    "best_again",
    "linear",
    "paper",
    "logit_own",
    "cpt",
    "longred_muon",
    "yarn_untrained",
]


def tables(figures: dict[str, float]) -> dict[str, str]:
    """The tables by marker name, in Markdown."""
    groups = sorted({arm["group"] for arm in selection_arms()})
    return {f"selection-{group}": _selection_table(figures, group) for group in groups} | {
        "recovery": _recovery_table(figures, _ARMS),
        "recovery-earlier": _recovery_table(figures, _EARLIER),
        "recovery-short": _recovery_table(figures, {arm: _ARMS[arm] for arm in _SHORT}),
        "restoration": _restoration_table(figures, "restoration", "2k", ["32k"], ["2k"]),
        "demo": _restoration_table(figures, "demo", "512", [], ["512"]),
        "kernel": _kernel_table(figures),
        "stage1": _stage1_table(figures),
        "width": _width_table(figures),
        "peaks": _peaks_table(figures),
        "restore": _restore_table(figures),
        "attention": _attention_table(figures),
        **models_tables(),
        "readers": _readers_table(),
        "gguf": _gguf_table(figures),
        **fault_tables(figures),
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
    columns = _filled(columns, names, figures)
    rows = []
    for name in names:
        cells = [_cell(figures.get(f"{name}.{part}"), form) for part, form in columns.values()]
        scaling = "YaRN: " if name.endswith("yarn8") else ""
        rows.append([scaling + _TITLES[name.split(".")[1]], *cells])
    return _markdown(["SmolLM2-135M, x 8", *columns], rows)


def _filled(
    columns: dict[str, tuple[str, str]], keys: list[str], figures: dict[str, float]
) -> dict[str, tuple[str, str]]:
    """The columns that one of the keys has a figure for."""
    return {
        title: (part, form)
        for title, (part, form) in columns.items()
        if any(f"{key}.{part}" in figures for key in keys)
    }


def _recovery_table(figures: dict[str, float], arms: dict[str, str]) -> str:
    """Arms of the sweep with several seeds: means, with the standard deviation where there is one."""
    columns = {
        "KL": ("kl", ".4f"),
        "top-1": ("top1", ".3f"),
        "LAMBADA kept": ("lambada_recovery", ".3f"),
        "tasks kept": ("tasks_recovery", ".3f"),
        "same answers": ("same_answers", ".3f"),
        "ppl 2k, ratio": ("ppl_2k_ratio", ".3f"),
        "documentation, ratio": ("documentation.ppl_ratio", ".3f"),
        **{f"ppl {n}": (f"ppl_{n}", ".1f") for n in ("8k", "32k", "64k")},
        **{f"pass key {n}": (f"passkey_{n}", ".2f") for n in ("2k", "8k", "16k", "32k", "64k")},
        **{f"retrieval {n}": (f"retrieval_{n}", ".2f") for n in ("2k", "32k")},
        "tokens": ("tokens", ",.0f"),
        "seeds": ("seeds", ".0f"),
    }
    found = [arm for arm in arms if f"restoration.{arm}.{MODEL}.ppl_2k" in figures]
    columns = _filled(columns, [f"restoration.{arm}.{MODEL}" for arm in found], figures)
    rows = []
    for arm in found:
        key = f"restoration.{arm}.{MODEL}"
        cells = []
        for part, form in columns.values():
            cell = _cell(figures.get(f"{key}.{part}"), form)
            deviation = figures.get(f"{key}.{part}_sd")
            cells.append(f"{cell} ± {deviation:{form}}" if deviation else cell)
        rows.append([arms[arm], *cells])
    return _markdown(["SmolLM2-135M, 8k to 64k", *columns], rows)


def _selection_table(figures: dict[str, float], group: str) -> str:
    columns = {
        "KL": ("kl", ".4f"),
        "top-1": ("top1", ".3f"),
        "code, KL": ("code_kl", ".3f"),
        **{f"ppl {n}": (f"ppl_{n}", ".1f") for n in ("2k", "8k", "32k", "64k")},
        **{f"pass key {n}": (f"passkey_{n}", ".2f") for n in ("2k", "8k", "16k", "32k", "64k")},
        **{f"retrieval {n}": (f"retrieval_{n}", ".2f") for n in ("2k", "8k", "32k")},
        "LAMBADA": ("lambada_openai", ".2f"),
        "tasks kept": ("tasks_kept", ".3f"),
        "same answers": ("same_answers", ".3f"),
        "tokens": ("tokens", ",.0f"),
    }
    arms = [arm for arm in selection_arms() if arm["group"] == group]
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
    names = {key.removesuffix(".ms") for key in figures if re.fullmatch(r"kernel\..*\.ms", key)}
    names = sorted(names, key=lambda name: figures[f"{name}.ms"])
    parts = {
        "forward + backward, ms": ("any_order_ms", ".2f"),
        "deterministic, ms": ("ms", ".2f"),
        "cuDNN attention, ms": ("cudnn_ms", ".2f"),
        "ratio to cuDNN": ("ratio_cudnn", ".3f"),
        "deterministic": ("deterministic.ratio_cudnn", ".3f"),
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


def _stage1_table(figures: dict[str, float]) -> str:
    parts = {
        "s a sequence": ("seconds_per_sequence", ".3f"),
        "stage, min": ("stage_minutes", ".1f"),
        "peak, GiB": ("peak_gib", ".1f"),
        "model-FLOP utilisation": ("mfu", ".2f"),
        "relation KL's share": ("relation_share", ".2f"),
    }
    end = ".seconds_per_sequence"
    names = [key.removesuffix(end) for key in sorted(figures) if key.endswith(end)]
    rows = [
        [
            name,
            *(_cell(figures.get(f"{name}.{p}"), form) for p, form in parts.values()),
        ]
        for name in names
    ]
    return _markdown(["stage, shape, GPU", *parts], rows) if rows else "Not measured yet."


def _restore_table(figures: dict[str, float]) -> str:
    """Original, stretched and restored of every run of `linearard restore`."""
    columns = {
        "KL to original, 2k (nats)": ("kl", ".4f"),
        "top-1 agreement": ("top1", ".3f"),
        "short tasks kept": ("tasks_kept", ".3f"),
        "same answers": ("same_answers", ".3f"),
        "pass key, worst length": ("passkey_min", ".2f"),
        "retrieval, worst length": ("retrieval_min", ".2f"),
        "perplexity at the target": ("ppl", ".1f"),
    }
    names = sorted({key.split(".")[1] for key in figures if key.startswith("restore.")})
    rows = []
    for name in names:
        start = f"restore.{name}."
        lengths = [int(k.rpartition("_")[2]) for k in figures if k.startswith(f"{start}ppl_")]
        for view, prefix in (
            ("original", "original."),
            ("stretched", "stretched."),
            ("restored", ""),
        ):
            cells = []
            for key, form in columns.values():
                key = f"{key}_{max(lengths)}" if key == "ppl" and lengths else key
                cells.append(_cell(figures.get(f"{start}{prefix}{key}"), form))
            rows.append([f"{name.replace('_', ' ')}: {view}", *cells])
    return _markdown(["model, view", *columns], rows)


def _peaks_table(figures: dict[str, float]) -> str:
    columns = {
        "planned, GiB": ("planned_gib", ".1f"),
        "measured, GiB": ("peak_gib", ".1f"),
        "planned / measured": ("ratio", ".3f"),
    }
    return _table_of(
        figures, "peaks.", "planned_gib", "GPU, shape, batch, window, optimizer", columns
    )


def _attention_table(figures: dict[str, float]) -> str:
    columns = {
        "ms": ("ms", ".2f"),
        "flash at the same work, ms": ("flash_ms", ".2f"),
        "ratio": ("ratio", ".3f"),
        "TFLOP/s": ("tflops", ".0f"),
    }
    return _table_of(figures, "attention.", "tflops", "GPU, layer", columns)


def _table_of(
    figures: dict[str, float],
    start: str,
    end: str,
    title: str,
    columns: dict[str, tuple[str, str]],
) -> str:
    """A row for every key that begins and ends so, with its neighbours."""
    keys = [key for key in sorted(figures) if key.startswith(start) and key.endswith(f".{end}")]
    names = [key.removeprefix(start).removesuffix(f".{end}") for key in keys]
    rows = [
        [name, *(_cell(figures.get(f"{start}{name}.{p}"), form) for p, form in columns.values())]
        for name in names
    ]
    return _markdown([title, *columns], rows) if rows else "Not measured yet."


def _width_table(figures: dict[str, float]) -> str:
    found = [key.split(".", 3)[2:] for key in figures if key.startswith("width.cpu.")]
    widths = sorted({width for width, _ in found}, key=int)
    rates = {end.removeprefix("rate_") for _, end in found if end.startswith("rate_")}
    columns = ["untrained", *(f"rate_{rate}" for rate in sorted(rates, key=float))]
    rows = [
        [width, *(_cell(figures.get(f"width.cpu.{width}.{end}"), ".3f") for end in columns)]
        for width in widths
    ]
    return _markdown(["width", *(end.removeprefix("rate_") for end in columns)], rows)


def _readers_table() -> str:
    path = RESULTS / "cpu" / "readers.json"
    if not path.is_file():
        return "Not measured yet."
    result = json.loads(path.read_text())
    rows = []
    for name, kind in result["written_as"].items():
        said = [found[name] for found in result["readers"].values()]
        cells = ["equal" if reads_rightly(one) else "another table" for one in said]
        rows.append([name.replace("_", ", "), f"`{kind}`", *cells])
    readers = [reader.replace("-", " ") for reader in result["readers"]]
    return _markdown(["scaling", "written as", *readers], rows)


def _gguf_table(figures: dict[str, float]) -> str:
    names = [
        key.removeprefix("export.gguf.").removesuffix(".kl")
        for key in figures
        if re.fullmatch(r"export\.gguf\..*\.kl", key) and ".q8_0." not in key
    ]
    parts = {
        "KL": ("kl", ".6f"),
        "top-1": ("top1", ".4f"),
        "longest, tokens": ("longest", ",.0f"),
        "Q8_0: KL": ("q8_0.kl", ".4f"),
        "Q8_0: top-1": ("q8_0.top1", ".3f"),
    }
    rows = [
        [
            name.replace("_", ", "),
            *(_cell(figures.get(f"export.gguf.{name}.{p}"), f) for p, f in parts.values()),
        ]
        for name in names
    ]
    return _markdown(["SmolLM2-135M", *parts], rows) if rows else "Not measured yet."


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
