"""Keep what a run of `linearard restore` gave, in a result file that README's table is made from.

    python -m benchmarks restored RUN --name smollm2_135m_x8 --out benchmarks/results/h200/restored_NAME.json

RUN is the output folder of the command. Where its console output was kept with `/usr/bin/time -v`, `--log`
takes the seconds from command to verdict out of that.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import yaml

from linearard.evaluation import summarise

_ELAPSED = re.compile(r"Elapsed \(wall clock\) time .*?: (?:(\d+):)?(\d+):([\d.]+)")
_VIEWS = ("original", "stretched", "restored")
_PLACES = (
    ("model", "name"),
    ("data", "train"),
    ("data", "validation"),
    ("evaluation", "tasks_dir"),
)


def record(
    run: Path, name: str, log: Path | None, note: str | None, commit: str | None
) -> dict[str, Any]:
    """The rows of the evaluation, what every stage decided, the recipe without places, and the time."""
    result = json.loads((run / "evaluation.json").read_text())
    verdict = json.loads((run / "verdict.json").read_text())
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    for section, field in _PLACES:
        if recipe.get(section, {}).get(field):
            recipe[section][field] = Path(str(recipe[section][field])).name
    recipe["output_dir"] = name
    rows = [
        {
            "label": row.label,
            "kind": row.kind,
            **{view: row.values[view] for view in _VIEWS if view in row.values},
            "intervals": {view: row.intervals[view] for view in _VIEWS if row.intervals.get(view)},
        }
        for row in summarise(result)
    ]
    decided = {
        path.parent.name.partition("-")[2]: json.loads(path.read_text())
        for path in sorted(run.glob("stage*/held_out.json"))
    }
    tried = sum(stage.get("trial_tokens", 0) for stage in decided.values())
    trained = sum(stage["tokens"] for stage in result["stages"].values())
    found = {
        "name": name,
        "note": note,
        "commit": commit,
        "meta": {
            k: result["meta"].get(k) for k in ("device", "torch", "transformers", "dtype", "date")
        },
        "verdict": {k: verdict[k] for k in ("good", "worse", "better")},
        "seconds": verdict.get("seconds"),
        "peak_bytes": verdict.get("peak_bytes"),
        "planned_bytes": verdict["planned_bytes"],
        "tokens": trained + tried,
        "rows": rows,
        "stages": result["stages"],
        "held_out": decided,
        "recipe": recipe,
    }
    if log is not None and (match := _ELAPSED.search(log.read_text())):
        hours, minutes, seconds = match.groups()
        found["seconds"] = 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds)
    return found


def main(argv: list[str]) -> None:
    """Write the result file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks restored", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--note", help="what a reader must know of how it was run")
    parser.add_argument("--commit")
    args = parser.parse_args(argv)
    found = record(args.run, args.name, args.log, args.note, args.commit)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
