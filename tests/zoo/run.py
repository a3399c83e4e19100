"""Every decoder class x scaling x adapter: trained, exported, read back by transformers 5 and 4.

    python tests/zoo/run.py --older .venv-transformers4/bin/python --out benchmarks/results/cpu/zoo.json

Verdicts are written after every trial; trials that the file has are not run again unless --again is given.
`python -m benchmarks.summary` makes the tables of docs/reference/models.md of the file. Exit code 1 if any
verdict is neither `same` nor `refused`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from classes import LEFT_OUT, Decoder, decoders, has_rotary
from trial import TRIALS, Trials

from linearard.export import ReaderProcess
from linearard.model import write_json

#: How many trials a process makes: libraries keep something of every model.
_PER_PROCESS = 40
_LIST_TYPES = (
    "from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as names;"
    "import json, transformers; print(json.dumps([transformers.__version__, sorted(names)]))"
)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the verdicts")
    parser.add_argument("--older", help="Python of an environment with transformers 4.57")
    parser.add_argument("--only", nargs="*", metavar="MODEL_TYPE", help="these classes alone")
    parser.add_argument("--again", action="store_true", help="run trials again that the file has")
    parser.add_argument("--first", type=int, help="the first so many trials of each class alone")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all models are made here
    result = _read(args.out)
    if not args.child:
        _start(result, args)
        write_json(args.out, result)
        command = [sys.executable, *[word for word in sys.argv if word != "--again"], "--child"]
        while subprocess.call(command) == 3:
            pass
        return _summary(_read(args.out))
    done = 0
    with ReaderProcess() as reader, ReaderProcess(args.older) as older_reader:
        older = older_reader if args.older else None
        for decoder in decoders():
            left = [trial for trial in TRIALS[: args.first] if not _known(result, decoder, trial)]
            if not left or (args.only and decoder.model_type not in args.only):
                continue
            entry = result["classes"][decoder.model_type]
            with tempfile.TemporaryDirectory() as folder:
                types = set(result["older_types"])
                try:
                    trials = Trials(decoder, Path(folder), reader, older, types)
                except Exception as error:
                    entry["not_made"] = (
                        f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
                    )
                    write_json(args.out, result)
                    continue
                for trial in left:
                    verdict = trials.run(*trial)
                    entry["trials"][" ".join(trial)] = {
                        k: v for k, v in asdict(verdict).items() if v not in ("", None)
                    }
                    write_json(args.out, result)
                    done += 1
            if done >= _PER_PROCESS:
                return 3
    return 0


def _start(result: dict[str, Any], args: argparse.Namespace) -> None:
    import torch
    import transformers

    result |= {"transformers": transformers.__version__, "torch": torch.__version__}
    result.setdefault("older_types", [])
    if args.older:
        # The working folder must not be imported from.
        done = subprocess.run(
            [args.older, "-c", _LIST_TYPES], capture_output=True, text=True, check=True, cwd="/"
        )
        result["older"], result["older_types"] = json.loads(done.stdout.splitlines()[-1])
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    commits = result.setdefault("commits", [])  # a file can be filled by several
    if (name := commit.stdout.strip()) not in commits:
        commits.append(name)
    result["left_out"] = LEFT_OUT
    classes = result.setdefault("classes", {})
    without = set(result.setdefault("without_rope", []))
    for decoder in decoders():
        chosen = not args.only or decoder.model_type in args.only
        if chosen and args.again:
            classes.pop(decoder.model_type, None)
        if decoder.model_type in classes or decoder.model_type in without:
            continue
        if has_rotary(decoder):
            classes[decoder.model_type] = {"name": decoder.name, "trials": {}}
        else:
            result["without_rope"].append(decoder.model_type)


def _known(result: dict[str, Any], decoder: Decoder, trial: tuple[str, str, str]) -> bool:
    entry = result["classes"].get(decoder.model_type)
    return entry is None or "not_made" in entry or " ".join(trial) in entry["trials"]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _summary(result: dict[str, Any]) -> int:
    entries = result["classes"].values()
    trials = [trial for entry in entries for trial in entry["trials"].values()]
    print("verdicts:", dict(Counter(trial["verdict"] for trial in trials)))
    print("transformers 4:", dict(Counter(trial.get("older", "not read") for trial in trials)))
    print("not made:", sorted(name for name, e in result["classes"].items() if "not_made" in e))
    good = all(
        trial["verdict"] in ("same", "refused") and trial.get("older") != "wrong"
        for trial in trials
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
