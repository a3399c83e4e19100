"""A run as its export's model card tells it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linearard.data.config import PYDOC, SELF
from linearard.evaluation import summarise
from linearard.export import Story
from linearard.recipe import Recipe, StageSection
from linearard.train import RESULT_FILE

_FORMS = {"perplexity": ".2f", "kl": ".4f"}  # all other kinds: .3f


def story_of(recipe: Recipe, checkpoint: Path | None = None) -> Story:
    """Stages, text and scores of a run.

    Args:
        recipe: of the run.
        checkpoint: its folder `final`: the evaluation beside it is of these weights. No scores are taken
            for another checkpoint.
    """
    result = None
    if checkpoint is not None and checkpoint.name == "final":
        path = checkpoint.parent / RESULT_FILE
        if path.is_file():
            result = json.loads(path.read_text())
    return told(recipe, result)


def told(recipe: Recipe, result: Mapping[str, Any] | None, verdict: str = "") -> Story:
    """The same from an evaluation in memory, or none, with what was made of it in a line."""
    done = (result or {}).get("stages", {})
    stages = [_stage(name, stage, done.get(name)) for name, stage in recipe.stages.items()]
    parts = [part for stage in recipe.stages.values() for part in stage.parts.values()]
    longest = max((part.window for part in parts), default=0)
    if result is None:
        return Story(stages, _text(recipe), longest=longest)
    meta = result.get("meta", {})
    documents = meta.get("documents", {})
    measured = (
        f"On held-out text ({documents.get('count', '?')} documents{_of(recipe)}), "
        f"{meta.get('device', 'unknown')}, {meta.get('dtype', 'unknown')}, {str(meta.get('date', ''))[:10]}."
    )
    scores = [
        (row.label, {view: _value(row, view) for view in row.values}) for row in summarise(result)
    ]
    return Story(stages, _text(recipe), scores, measured, longest, verdict)


def _of(recipe: Recipe) -> str:
    """Whose documents are held out, where it is not a part of the training text."""
    source = recipe.data.validation
    if source is None:
        return ""
    return " of the installed Python's documentation" if source == PYDOC else f" of `{source}`"


def _stage(name: str, stage: StageSection, done: Mapping[str, Any] | None) -> str:
    windows = sorted({part.window for part in stage.parts.values()})
    said = f"Stage {name}: windows of {', '.join(f'{window:,}' for window in windows)} tokens"
    if done:
        said += f", {done['tokens']:,} tokens in {done['steps']:,} steps"
    return said + "."


def _text(recipe: Recipe) -> str:
    parts = [part for stage in recipe.stages.values() for part in stage.parts.values()]
    own = any(part.data.get("train") == SELF for part in parts)
    source = recipe.data.train
    named = ", ".join(map(str, source)) if isinstance(source, list) else str(source)
    return f"`{named}`" + (" and text that the original wrote itself" if own else "")


def _value(row: Any, view: str) -> str:
    form = _FORMS.get(row.kind, ".3f")
    ends = row.intervals.get(view)
    said = format(row.values[view], form)
    return f"{said} [{ends[0]:{form}}, {ends[1]:{form}}]" if ends else said
