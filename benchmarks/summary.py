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

from benchmarks.cells import cell, cells_of, filled, markdown
from benchmarks.fault_tables import fault_tables
from benchmarks.figures import ARMS, RESULTS, RUNS, collect, reads_rightly
from benchmarks.models import models_tables
from benchmarks.restore_tables import restore_tables
from benchmarks.ruler_table import ruler_table
from benchmarks.scale_tables import scale_table
from benchmarks.step_tables import step_tables
from benchmarks.trained_tables import trained_tables

ROOT = Path(__file__).parent.parent
#: Every page that may hold a table between `<!-- table:NAME -->` and `<!-- /table -->`.
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
SUMMARY = RESULTS / "summary.json"

_TITLES = {
    "original": "original, native RoPE",
    "untrained": "linear, untrained",
    "stage1": "the paper's stage 1",
    "stage2": "then its stage 2 (CPT)",
    "paper_relations": "linear: stage 1, the paper's relations alone",
    "aligned": "alignment (each layer alone)",
    "restored": "restoration, after the alignment",
}


def tables(figures: dict[str, float]) -> dict[str, str]:
    """The tables by marker name, in Markdown."""
    return {
        **trained_tables(figures),
        "restoration": _restoration_table(figures, "restoration", "2k", ["32k"], ["2k"]),
        "demo": _restoration_table(figures, "demo", "2k", [], ["2k", "4k"]),
        **_kernel_tables(figures),
        **_stage_tables(figures),
        **step_tables(figures),
        "width": _width_table(figures),
        "peaks-long": _peaks_table(figures, "long"),
        "peaks-short": _peaks_table(figures, "short"),
        **restore_tables(figures),
        "attention": _attention_table(figures),
        **models_tables(),
        "readers": _readers_table(),
        "gguf": _gguf_table(figures),
        "ruler": ruler_table(figures),
        **fault_tables(figures),
        "scale": scale_table(figures),
    }


def _restoration_table(
    figures: dict[str, float], family: str, window: str, longer: list[str], lengths: list[str]
) -> str:
    columns = {
        "KL to original (nats)": ("kl", ".3f"),
        f"perplexity, {window} tokens": (f"ppl_{window}", ".1f"),
        **{f"perplexity, {w}": (f"ppl_{w}", ".1f") for w in longer},
        **{f"pass key, {n}": (f"passkey_{n}", ".2f") for n in lengths},
        "LAMBADA": ("lambada_openai", ".3f"),
        "tokens": ("tokens", ",.0f"),
        "training, s": ("seconds", ",.0f"),
    }
    named = [entry[0] for entries in RUNS.values() for entry in entries]
    names = [key for key in [*named, *(entry[0] for entry in ARMS)] if key.startswith(family)]
    names = [name for name in names if any(key.startswith(f"{name}.") for key in figures)]
    columns = filled(columns, names, figures)
    rows = []
    for name in names:
        cells = cells_of(figures, f"{name}.", columns)
        title = _TITLES[name.split(".")[1]]
        if name.endswith("yarn8"):
            title = title.replace("linear", "YaRN") if "linear" in title else f"YaRN: {title}"
        rows.append([title, *cells])
    return markdown(["SmolLM2-135M, x 8", *columns], rows)


def _kernel_tables(figures: dict[str, float]) -> dict[str, str]:
    """The relation KL beside attention on the same shape, one table a GPU."""
    columns = {
        "relation KL, ms": ("ms", ".2f"),
        "in any order, ms": ("any_order_ms", ".2f"),
        "cuDNN attention, ms": ("cudnn_ms", ".2f"),
        "ratio to cuDNN": ("deterministic.ratio_cudnn", ".3f"),
        "in any order": ("ratio_cudnn", ".3f"),
        "ratio to flash": ("ratio_flash", ".2f"),
        "share of GEMM rate": ("gemm_fraction", ".2f"),
    }
    names = {key.removesuffix(".ms") for key in figures if re.fullmatch(r"kernel\..*\.ms", key)}
    names = sorted(names, key=lambda name: figures[f"{name}.ms"])
    made = {}
    for gpu in ("h100", "h200"):
        rows = [
            [_kernel_case(n), *cells_of(figures, f"{n}.", columns)]
            for n in names
            if n.startswith(f"kernel.{gpu}.")
        ]
        table = markdown(["one relation, causal, bfloat16", *columns], rows)
        made[f"kernel-{gpu}"] = table if rows else "Not measured yet."
    return made


def _kernel_case(name: str) -> str:
    """`kernel.h200.attention.bf16.d64.t2048.h9+3` in words."""
    parts = name.split(".")[2:]
    kind = "qk" if parts[0] == "attention" else "self"
    said = {part[0]: part[1:] for part in parts if re.fullmatch(r"[dth][\d+]+", part)}
    heads = f", {said['h'].replace('+', ' + ')} heads" if "h" in said else ""
    return f"{kind}, head_dim {said['d']}, {int(said['t']):,} tokens{heads}"


def _stage_tables(figures: dict[str, float]) -> dict[str, str]:
    """The paper's two stages on shapes of 7B and 8B models."""
    parts = {
        "s a sequence": ("seconds_per_sequence", ".3f"),
        "stage, min": ("stage_minutes", ".1f"),
        "peak, GiB": ("peak_gib", ".1f"),
        "model-FLOP utilisation": ("mfu", ".2f"),
        "relation KL's share": ("relation_share", ".2f"),
    }
    end, made = ".seconds_per_sequence", {}
    for stage in ("stage1", "stage2"):
        keys = [k for k in sorted(figures) if k.startswith(f"{stage}.") and k.endswith(end)]
        names = [key.removesuffix(end) for key in keys]
        columns = filled(parts, names, figures)
        rows = []
        for name in names:
            cells = cells_of(figures, f"{name}.", columns)
            rows.append([name.removeprefix(f"{stage}.").replace(".", ", "), *cells])
        table = markdown(["shape, GPU, options", *columns], rows)
        made[stage] = table if rows else "Not measured yet."
    return made


def _peaks_table(figures: dict[str, float], batch: str) -> str:
    """Of one kind of batch: long windows, or batches of short ones."""
    columns = {
        "planned, GiB": ("planned_gib", ".1f"),
        "measured, GiB": ("peak_gib", ".1f"),
        "planned / measured": ("ratio", ".3f"),
    }
    some = {
        key: figure
        for key, figure in figures.items()
        if key.startswith("peaks.") and f".{batch}." in key
    }
    return _table_of(some, "peaks.", "planned_gib", "GPU, shape, batch, window, optimizer", columns)


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
    rows = [[name, *cells_of(figures, f"{start}{name}.", columns)] for name in names]
    return markdown([title, *columns], rows) if rows else "Not measured yet."


def _width_table(figures: dict[str, float]) -> str:
    found = [key.split(".", 3)[2:] for key in figures if key.startswith("width.cpu.")]
    widths = sorted({width for width, _ in found}, key=int)
    rates = {end.removeprefix("rate_") for _, end in found if end.startswith("rate_")}
    columns = ["untrained", *(f"rate_{rate}" for rate in sorted(rates, key=float))]
    rows = [
        [width, *(cell(figures.get(f"width.cpu.{width}.{end}"), ".3f") for end in columns)]
        for width in widths
    ]
    return markdown(["width", *(end.removeprefix("rate_") for end in columns)], rows)


def _readers_table() -> str:
    path = RESULTS / "cpu" / "readers.json"
    if not path.is_file():
        return "Not measured yet."
    result = json.loads(path.read_text())
    rows = []
    for name in result["written_as"]:
        said = [found[name] for found in result["readers"].values()]
        cells = ["equal" if reads_rightly(one) else "another table" for one in said]
        rows.append([name.replace("_", ", "), *cells])
    readers = [reader.replace("-", " ") for reader in result["readers"]]
    return markdown(["scaling", *readers], rows)


def _gguf_table(figures: dict[str, float]) -> str:
    """A row a scaling; of each model the worst KL, the longest text, and in 8 bits the KL of the longest."""
    found = [re.fullmatch(r"export\.gguf\.([^.]+)(\.qwen[^.]*)?\.longest", key) for key in figures]
    scalings = sorted({match[1] for match in found if match})
    models = {"SmolLM2": "", "Qwen2.5": ".qwen2_5_coder_0_5b"}
    parts = {"KL": ("kl", ".6f"), "tokens": ("longest", ",.0f"), "Q8_0, KL": ("q8_0.kl", ".4f")}
    rows = []
    for name in scalings:
        keys = [f"export.gguf.{name}{end}" for end in models.values()]
        agreeing = [figures[f"{key}.top1"] for key in keys if f"{key}.top1" in figures]
        cells = [shown for key in keys for shown in cells_of(figures, f"{key}.", parts)]
        cells = ["below 1e-6" if shown == "0.000000" else shown for shown in cells]
        rows.append([name.replace("_", ", "), *cells, cell(min(agreeing, default=None), ".4f")])
    headers = [f"{model}: {part}" for model in models for part in parts]
    return markdown(["scaling", *headers, "lowest top-1"], rows) if rows else "Not measured yet."


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
