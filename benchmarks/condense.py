"""Keep of a sweep's runs what tables are made of, in one file.

    python -m benchmarks.condense runs/recovery benchmarks/results/h200/recovery.json

The folder holds `ARM/seed-SEED/evaluation.json` and `recipe.yaml`, as `linearard sweep` writes them. Of each
run stay its figures and the original's, tokens, seconds, and what the evaluation says about itself; of each
arm its recipe, without where the text lay. Logs of steps, answers to single records and passages are left
out. Arms that the file has already stay, unless the folder has them too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

_ABOUT = ("device", "dtype", "versions", "commit", "date")
_PLACES = ("train", "validation", "cache_dir")


def condensed(folder: Path) -> dict[str, Any]:
    """Arms by name: recipe, and by seed figures and circumstances."""
    arms: dict[str, Any] = {}
    for path in sorted(folder.glob("*/seed-*/evaluation.json")):
        result = json.loads(path.read_text())
        arm = arms.setdefault(path.parent.parent.name, {"recipe": {}, "seeds": {}})
        arm["seeds"][path.parent.name.removeprefix("seed-")] = condensed_run(result)
        recipe = path.with_name("recipe.yaml")
        if recipe.is_file():
            arm["recipe"] = _recipe(yaml.safe_load(recipe.read_text()))
    return arms


def condensed_run(result: dict[str, Any]) -> dict[str, Any]:
    """One run: figures of its view and of the original, tokens and seconds, and how it was measured."""
    from benchmarks.figures import view_figures

    totals = {
        part: sum(stage[part] for stage in result["stages"].values())
        for part in ("tokens", "seconds")
    }
    meta = result.get("meta", {})
    return {
        "about": {name: meta[name] for name in _ABOUT if name in meta},
        "original": view_figures(result["views"], "original"),
        "figures": view_figures(result["views"], result["sweep"]["view"]) | totals,
    }


def _recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in recipe.items() if k not in ("output_dir", "seed")}
    data = kept.get("data") or {}
    kept["data"] = {k: v for k, v in data.items() if k not in _PLACES or v == "self"}
    return kept


def main() -> None:
    """Condense a folder into a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    before = json.loads(args.file.read_text())["arms"] if args.file.is_file() else {}
    arms = dict(sorted((before | condensed(args.folder)).items()))
    # An arm a line: a few dozen kB in all, and a change of one arm is a change of one line.
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(arm)}" for name, arm in arms.items())
    args.file.write_text(f'{{"arms": {{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main()
