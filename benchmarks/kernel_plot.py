"""Draw time over length from a result of `relation_kl`: FILE.json becomes FILE.svg beside it.

    python -m benchmarks kernel_plot benchmarks/results/h100/relation_kl.json

Two lines are computed, not measured: the floor, which is 6 u at the GEMM rate measured in the same process,
and the exponentials of both passes, two a pair of scores in each, at 16 a cycle and multiprocessor.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HEAD_DIM = 128
EXPONENTIALS = 3.7e12  # a second on an H100 or H200: 132 x 16 x 1.755 GHz
SERIES = {
    "any_order": ("ours, any order", "o-", "#1f9e89"),
    "forward_backward": ("ours, deterministic", "s--", "#1f9e89"),
    "cudnn": ("cuDNN attention", "^-", "#e2603a"),
    "triton": ("ours, Triton", "v-", "#5b7fd6"),
    "flash": ("flash attention", "d-", "#c9a227"),
    "compiled": ("dense, torch.compile", "x-", "#b07aa1"),
    "dense": ("dense, PyTorch", "+-", "#8b93a1"),
}


def draw(result: dict, to: Path) -> None:
    """Write the plot of the shapes of `HEAD_DIM` in ``result`` as SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    shapes = [s for s in result["shapes"].values() if s["head_dim"] == HEAD_DIM]
    shapes.sort(key=lambda s: s["tokens"])
    tokens = [s["tokens"] for s in shapes]
    pairs = [s["batch"] * s["heads"] * s["tokens"] ** 2 for s in shapes]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "linearard"}):
        figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
        for name, (label, style, colour) in SERIES.items():
            points = [(s["tokens"], s[name]["p50"]) for s in shapes if s.get(name)]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=colour, label=label)
        floor = [6 * p * HEAD_DIM / result["gemm_tflops"] / 1e9 for p in pairs]
        axes.plot(tokens, floor, ":", color="black", label="floor: 6 u at the GEMM rate")
        exponentials = [2 * p / EXPONENTIALS * 1e3 for p in pairs]
        axes.plot(tokens, exponentials, "-.", color="black", label="exponentials alone")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(tokens, [f"{n // 1024}k" for n in tokens])
        axes.set_xlabel(f"tokens ({shapes[0]['heads']} heads of {HEAD_DIM}, bfloat16, causal)")
        axes.set_ylabel("forward + backward, ms")
        axes.set_title(result["device"])
        axes.grid(alpha=0.2)
        axes.legend(frameon=False, fontsize="small")
        figure.savefig(to, metadata={"Date": None})
        pyplot.close(figure)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks kernel_plot", description=__doc__)
    parser.add_argument("file", type=Path, help="what `python -m benchmarks relation_kl` wrote")
    file = parser.parse_args(arguments).file
    draw(json.loads(file.read_text()), file.with_suffix(".svg"))
