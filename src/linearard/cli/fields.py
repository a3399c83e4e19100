"""Every recipe field with its meaning, for `--help`.

The classes that have the fields need PyTorch and transformers, whose import takes seconds. So their text is
kept in a file, which a test compares with them. After a change of a field:

    python -m linearard.cli.fields
"""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("recipe_fields.txt")


def teach_fields(parser: argparse.ArgumentParser) -> None:
    """Let the parser's help end with the recipe fields; they are read only when it is asked for."""
    plain = parser.format_help
    parser.format_help = lambda: plain() + "\n" + kept_text()  # type: ignore[method-assign]


def kept_text() -> str:
    """The fields as the file has them."""
    return _FILE.read_text(encoding="utf-8")


def sections() -> list[tuple[str, Iterable[Any]]]:
    """The fields of a recipe by the section that they stand in."""
    from linearard.data import DataConfig
    from linearard.distill import ObjectiveConfig
    from linearard.evaluation import EvaluationConfig
    from linearard.model import AdapterConfig, ModelConfig
    from linearard.recipe import PartConfig, own_fields
    from linearard.recipe.held_out import HeldOutConfig

    return [
        ("model", dataclasses.fields(ModelConfig)),
        ("adapter", dataclasses.fields(AdapterConfig)),
        ("data", dataclasses.fields(DataConfig)),
        ("stages.STAGE", own_fields()),
        ("stages.STAGE.parts.PART", dataclasses.fields(PartConfig)),
        (
            "stages.STAGE.objective, stages.STAGE.parts.PART.objective",
            dataclasses.fields(ObjectiveConfig),
        ),
        ("stages.STAGE.held_out", dataclasses.fields(HeldOutConfig)),
        ("evaluation", dataclasses.fields(EvaluationConfig)),
    ]


def fields_text() -> str:
    """The fields as the classes have them."""
    from linearard.recipe.trainer_fields import STAGE_FIELDS

    lines = [
        "recipe fields (in the YAML file, or on the command line as --section.field VALUE):",
        "  output_dir, seed",
        "  target_window = None: tokens that the trained model shall read, which its exports say; None: the",
        "          longest window trained beyond the native one, else factor times native window",
        "  deterministic = False: same seed, same bits on one GPU (a CPU's are the same anyway); slower",
        "  report_to = none: trackers that get losses, recipe and evaluation: tensorboard; wandb and others",
        "          that send the run elsewhere, on the command line alone",
        "  rope.*  as in transformers' rope_parameters: rope_type (linear, dynamic, yarn, llama3,",
        "          longrope, default with a larger rope_theta, or table with inv_freq), factor and the",
        "          type's own keys; original_max_position_embeddings is the window that the stretch",
        "          counts from, where the model was trained on less than its configuration promises;",
        "          counted_from: model counts from a model whose RoPE is scaled already",
    ]
    for name, items in sections():
        lines.append(f"\n{name}:")
        for item in items:
            lines.append(f"  {item.name}{_default(item)}")
            lines += textwrap.wrap(
                item.metadata.get("help", ""), 96, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
    lines += [
        "\nStages also take these fields of transformers.TrainingArguments:",
        *textwrap.wrap(", ".join(STAGE_FIELDS), 96, initial_indent="  ", subsequent_indent="  "),
        "--stages.NAME null removes a stage, --stages.NAME.parts.PART null a part of one.",
    ]
    return "\n".join(lines) + "\n"


def _default(item: Any) -> str:
    value = item.default
    if item.default_factory is not dataclasses.MISSING:
        value = item.default_factory()
        if dataclasses.is_dataclass(value):
            return ""
    return "" if value is dataclasses.MISSING else f" = {value!r}"


if __name__ == "__main__":
    _FILE.write_text(fields_text(), encoding="utf-8")
