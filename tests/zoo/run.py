"""Every decoder class x scaling x adapter x precision: trained, exported, read back by transformers 5 and 4.

    python tests/zoo/run.py --older .venv-transformers4/bin/python --out benchmarks/results/cpu/zoo.json

Everything is imported once; workers are forks of that process, each with one reading process for each version
of transformers, which loads one export after another. Verdicts are written after every class; trials that the
file has are not run again unless --again is given. `python -m benchmarks.summary` makes the tables of
docs/reference/models.md of the file. Exit code 1 if any verdict is neither `same` nor `refused`.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from classes import LEFT_OUT, Decoder, decoders, has_rotary
from trial import TRIALS, Trials

from benchmarks.models import read_zoo
from linearard.export import ReaderProcess
from linearard.storage import write_text

_LIST_TYPES = (
    "from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as names;"
    "import json, transformers; print(json.dumps([transformers.__version__, sorted(names)]))"
)
_Trial = tuple[str, str, str]


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the verdicts")
    parser.add_argument("--older", help="Python of an environment with transformers 4.57")
    parser.add_argument("--only", nargs="*", metavar="MODEL_TYPE", help="these classes alone")
    parser.add_argument("--again", action="store_true", help="run trials again that the file has")
    parser.add_argument("--first", type=int, help="the first so many trials of each class alone")
    parser.add_argument("--workers", type=int, default=2, help="processes at once (default: 2)")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all models are made here
    result = read_zoo(args.out) if args.out.exists() else {}
    _start(result, args)
    _write(args.out, result)
    gc.freeze()  # what is imported here is not looked through again at every collection of a worker
    with ProcessPoolExecutor(
        args.workers,
        multiprocessing.get_context("fork"),
        _open_readers,
        (args.older, set(result["older_types"])),
    ) as workers:
        tasks = {}
        for decoder in decoders():
            chosen = not args.only or decoder.model_type in args.only
            entry = result["classes"].get(decoder.model_type, {"not_made": ""})
            left = [t for t in TRIALS[: args.first] if " ".join(t) not in entry.get("trials", ())]
            if chosen and left and "not_made" not in entry:
                tasks[workers.submit(_try, decoder, left)] = entry
        for done, task in enumerate(as_completed(tasks), 1):
            entry, found = tasks[task], task.result()
            entry["trials"].update(found.pop("trials", {}))
            entry.update(found)
            _write(args.out, result)
            print(f"{done} of {len(tasks)} classes: {entry['name']}", flush=True)
    return _summary(result)


def _write(path: Path, result: dict[str, Any]) -> None:
    """One class a line, and what is said many times once (`benchmarks.models.read_zoo` reads it)."""
    words: dict[str, int] = {}
    lines = []
    for kind, entry in result["classes"].items():
        trials = {}
        for name, trial in entry.get("trials", {}).items():
            kept = dict(trial)
            if "error" in kept:
                kept["error"] = float(f"{kept['error']:.2g}")
            for said in ("words", "older_words"):
                if kept.get(said):
                    kept[said] = words.setdefault(kept[said], len(words))
            trials[name] = kept
        shown = entry | ({"trials": trials} if trials else {})
        lines.append(f"{json.dumps(kind)}: {json.dumps(shown)}")
    classes = ",\n".join(lines)
    rest = {name: value for name, value in result.items() if name != "classes"}
    rest["words"] = list(words)
    write_text(path, f'{json.dumps(rest)[:-1]}, "classes": {{\n{classes}\n}}}}\n')


def _open_readers(older: str | None, older_types: set[str]) -> None:
    """What a worker has for all its classes; the readers end when it does."""
    global _readers
    _readers = (ReaderProcess(), ReaderProcess(older) if older else None, older_types)


def _try(decoder: Decoder, left: list[_Trial]) -> dict[str, Any]:
    """Verdicts of one class, by trial; `not_made` where there is no tiny model of it."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            trials = Trials(decoder, Path(folder), *_readers)
        except Exception as error:
            return {"not_made": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}
        for trial in left:
            verdict = asdict(trials.run(*trial))
            found[" ".join(trial)] = {k: v for k, v in verdict.items() if v not in ("", None)}
    gc.collect()
    gc.freeze()
    return {"trials": found}


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
