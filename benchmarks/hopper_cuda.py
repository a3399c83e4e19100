"""The Hopper design (benchmarks/designs) on a GPU: primitives, correctness, then times.

Every stage is a process of its own with a time limit: a hang or an illegal access ends that stage
and the next one begins. Times of the d64 and d128 shapes are taken even if a check failed, and the
file says so. It holds, per stage, {status, seconds, result}.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.record import add_arguments, circumstances, write


def run_stage(name: str, seconds: int) -> dict:
    """What stage ``name`` returned in a process of its own, and how it ended."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "benchmarks", "hopper_cuda"]
        command += ["--stage", name, "--out", str(answer)]
        try:
            code = subprocess.run(command, timeout=seconds).returncode
            status = "ok" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            status = f"no end after {seconds} s"
        result = json.loads(answer.read_text()) if answer.exists() else None
    return {
        "status": status,
        "seconds": round(time.perf_counter() - start, 1),
        "result": result,
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks hopper_cuda", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--only", nargs="+", help="these stages (build comes first anyway)")
    parser.add_argument("--stage", help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("needs a Hopper GPU")
    from benchmarks.designs.hopper_cuda.stages import STAGES

    if options.stage:
        options.out.write_text(json.dumps(STAGES[options.stage][0]()))
        return
    results = {**circumstances(options.commit), "stages": {}}
    for name, (_, seconds) in STAGES.items():
        if options.only and name != "build" and name not in options.only:
            continue
        print(f"{name} ...", flush=True)
        results["stages"][name] = stage = run_stage(name, seconds)
        print(f"{name}: {stage['status']}, {stage['seconds']} s", flush=True)
        write(options.out, results)
        if name == "build" and stage["status"] != "ok":
            break
    print(json.dumps({name: s["status"] for name, s in results["stages"].items()}, indent=1))
