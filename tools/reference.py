"""Reference pages in Markdown, made from the code: recipe fields, commands, the Python API."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable
from typing import Any


def recipe() -> str:
    """Every field of a recipe: default, range and meaning."""
    from linearard.cli.fields import sections
    from linearard.recipe.trainer_fields import STAGE_FIELDS

    lines = [
        "## `rope`",
        "",
        "As in `rope_parameters` of transformers: `rope_type` (`linear`, `dynamic`, `yarn`, `llama3`, "
        "`longrope`, `default` with a larger `rope_theta`, or `table` with `inv_freq`), `factor`, and the "
        "keys of the type. `original_max_position_embeddings` is the window that the stretch counts from, "
        "where a model was trained on less than its configuration promises. "
        "[Which frequencies](../concepts/method.md#which-frequencies) explains `counted_from`.",
        "",
    ]
    for name, items in sections():
        lines += [f"## {', '.join(f'`{part}`' for part in name.split(', '))}", ""]
        lines += _fields(items)
    lines += [
        "## Fields of `transformers.TrainingArguments`",
        "",
        "A stage also takes these, with the meaning that transformers gives them: "
        + ", ".join(f"`{field}`" for field in STAGE_FIELDS)
        + ". `--stages.NAME null` removes a stage, `--stages.NAME.parts.PART null` a part of one.",
    ]
    return "\n".join(lines)


def _fields(items: Iterable[Any]) -> list[str]:
    """One row a field: its name and default, its meaning and range."""
    rows = ["| field | meaning |", "| --- | --- |"]
    for item in items:
        name = f"`{item.name}`" + (f"<br>default {_default(item)}" if _default(item) else "")
        rule = item.metadata.get("rule")
        meaning = item.metadata.get("help", "")
        if rule and not rule.expected.startswith("text of 1 to"):  # any text that could be a path
            meaning += f"<br>*Value: {rule.expected}.*"
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (name, meaning)) + " |")
    return [*rows, ""]


def _default(item: Any) -> str:
    value = item.default
    if item.default_factory is not dataclasses.MISSING:
        value = item.default_factory()
    if value is dataclasses.MISSING or dataclasses.is_dataclass(value) or value == "":
        return ""
    if value is None or isinstance(value, bool):
        return f"`{json.dumps(value)}`"
    return f"`{value}`"


def commands() -> str:
    """The help of every command."""
    from linearard.cli.main import build_parser

    parser = build_parser()
    lines = ["## `linearard`", "", "```text", parser.format_help().rstrip(), "```", ""]
    (choices,) = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for name, command in (choices or {}).items():
        text = argparse.ArgumentParser.format_help(command).rstrip()
        lines += [f"## `linearard {name}`", "", "```text", text, "```", ""]
    return "\n".join(lines)


def api() -> str:
    """Directives from which mkdocstrings makes the API's page."""
    import linearard
    from linearard import data, errors, model

    groups: dict[str, tuple[Any, ...]] = {
        "The loss": (linearard.relation_kl, linearard.attention_kl),
        "A model and its views": (
            linearard.RestorableModel,
            model.ModelConfig,
            model.AdapterConfig,
        ),
        "Text": (data.DataConfig, data.token_blocks),
        "Training": (linearard.RestorationTrainer, linearard.RestorationConfig),
        "Recipes": (linearard.load_recipe, linearard.run_recipe, linearard.train_and_report),
        "Checkpoints": (model.save_checkpoint, linearard.load_restored),
        "Errors": (errors.UserError, *errors.UserError.__subclasses__()),
    }
    lines = []
    for title, things in groups.items():
        lines += [f"## {title}", ""]
        for thing in things:
            lines += [f"::: {thing.__module__}.{thing.__qualname__}", ""]
    return "\n".join(lines)


PAGES: dict[str, Callable[[], str]] = {"recipe": recipe, "commands": commands, "api": api}
