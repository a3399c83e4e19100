"""Restoration and CPT on the GPUs of one machine against one of them, in one go.

    python -m benchmarks scale --out benchmarks/results/h200/scale.json            # two GPUs; some minutes
    python -m benchmarks scale --gpus 4 --out benchmarks/results/h200/scale.json   # adds those of four
    python -m benchmarks scale --device cpu --shape tiny --out /tmp/scale.json     # its own test

Every case is a start of `torchrun` with one or all GPUs, one after the other. Models have random weights. The
file it writes:

    runs: xN ->                  for N GPUs
        device, torch, transformers, python, commit, date    where and when
        cases: NAME ->
            gpus, engine, sharing, shape, window, accumulation, steps, objective
            seconds              of a step: {p20, p50, p80}
            tokens_per_second    of all GPUs together
            peak_gib             most memory allocated, of the fullest GPU
            activation_gib       of that, what was not there before the first step
            loss                 of the last step
    points: what `scale_model` plots: name, gpus, seconds

Cases: the paper's stage on the shape of LLaMA2-7B (LoRA of rank 1024, windows of 4,096): `one`, `ddp` and
`fsdp` with one window a GPU (weak scaling), `one.four`, `ddp.four` and `fsdp.four` with four windows a step
(strong); a step of restoration of a 32B shape by shares (`fsdp.32b`), whose weights are made layer by layer;
CPT with 131,072 tokens on the shape of LLaMA3-8B, alone (`cpt.one`) and shared (`cpt.shared`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.record import add_arguments, circumstances, write

_FOUR = 4  # windows of a step in the paper


def cases(gpus: int, shape: str | None) -> dict[str, list[str]]:
    """Arguments of `benchmarks.scale_worker` by the name of the case; those of `one` run on one GPU."""
    paper = ["--shape", shape or "llama2-7b", "--window", "64" if shape else "4096"]
    long = ["--shape", shape or "llama3-8b", "--window", "128" if shape else "131072", "--cpt"]
    large = ["--shape", shape or "qwen2.5-32b", "--window", "64" if shape else "4096"]
    strong = {"one": _FOUR, "ddp": _FOUR // gpus, "fsdp": _FOUR // gpus}
    found = {"one": paper, "ddp": paper, "fsdp": [*paper, "--sharded"]}
    found |= {
        f"{name}.four": [*found[name], "--accumulate", str(max(1, batches))]
        for name, batches in strong.items()
    }
    found["fsdp.32b"] = [*large, "--sharded", "--steps", "3"]
    found |= {"cpt.one": long, "cpt.shared": [*long, "--sharing", str(gpus)]}
    return found


def run(name: str, arguments: list[str], gpus: int, device: str) -> dict[str, Any]:
    """One case, in processes of its own."""
    alone = "one" in name.split(".")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "case.json"
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(1 if alone else gpus)]
        worker = ["-m", "benchmarks.scale_worker", *arguments, "--device", device]
        command = [sys.executable, *launcher, *worker, "--case", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not out.is_file():
            return {"failed": done.stderr.strip().splitlines()[-12:]}
        return json.loads(out.read_text())


def points(runs: dict[str, Any]) -> list[dict[str, Any]]:
    """Measured steps, as `scale_model` plots them."""
    return [
        {
            "name": f"{name} ({case['shape']})",
            "gpus": case["gpus"],
            "seconds": case["seconds"]["p50"],
        }
        for found in runs.values()
        for name, case in found["cases"].items()
        if "seconds" in case and not name.endswith(".four")
    ]


def main(arguments: list[str]) -> None:
    """Measure every case, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--shape", help="instead of the shapes above, such as tiny")
    parser.add_argument("--only", nargs="*", help="names of cases")
    add_arguments(parser)
    args = parser.parse_args(arguments)
    result = json.loads(args.out.read_text()) if args.out.is_file() else {"runs": {}}
    here = result["runs"].setdefault(f"x{args.gpus}", {"cases": {}})
    here |= circumstances(args.commit, args.device)
    for name, options in cases(args.gpus, args.shape).items():
        if args.only and name not in args.only:
            continue
        here["cases"][name] = run(name, options, args.gpus, args.device)
        print(name, json.dumps(here["cases"][name])[:300], flush=True)
        result["points"] = points(result["runs"])
        write(args.out, result)
