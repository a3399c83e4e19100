"""The model card of an export: README.md, with what a stranger needs to use the model and to judge it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from linearard.export.commands import commands
from linearard.export.license import license_of
from linearard.model import display_name
from linearard.model.view_names import ORIGINAL, RESTORED, STRETCHED

_MARK = "<!-- written by `linearard export` -->"


@dataclass(frozen=True)
class Story:
    """What the weights alone do not tell.

    Attributes:
        stages: a line on each stage that the model was trained in.
        text: where the training text came from.
        scores: rows of a comparison: what was measured, and by view (original, stretched, restored) the
            value with its interval.
        measured: a line on what the scores were measured with.
        longest: tokens of the longest window that was trained; 0: not known.
        verdict: a line on whether it is better than the stretched model.
    """

    stages: list[str] = field(default_factory=list)
    text: str = ""
    scores: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    measured: str = ""
    longest: int = 0
    verdict: str = ""


def write_card(
    folder: Path,
    about: dict[str, Any],
    *,
    native_window: int,
    story: Story | None = None,
    destination: Path | None = None,
) -> Path:
    """Write the card of an export; a README that somebody else wrote stays, and MODEL_CARD.md stands beside.

    Args:
        folder: of the export.
        about: what `linearard_export.json` holds.
        native_window: tokens that the original reads.
        story: of the run, where there was one.
        destination: where the export goes when it is whole, if that is another folder.

    Returns:
        Where it was written.
    """
    story = story or Story()
    there = (destination or folder) / "README.md"
    of_others = there.is_file() and _MARK not in there.read_text(errors="replace")
    path = folder / ("MODEL_CARD.md" if of_others else "README.md")
    licence = license_of(about["base_model"])
    window, form = about["window"], about["form"]
    name = f"{_short(about['base_model'])}, {window:,} tokens"
    parts = [
        _front(about, licence),
        _MARK,
        f"# {name}",
        _summary(about, native_window),
        "## Use",
        "In the folder of these files; of a hub repository, `hf download OWNER/NAME --local-dir .` puts them "
        "there.",
        *commands(folder, about),
        "## How it was made",
        _made(about, story, native_window),
        "## Scores against the original",
        _scores(story),
        "## Limits",
        _limits(folder, about, story),
        "## Licence",
        f"Of the base model: {licence or 'not known here; see the base model'}. The weights are derived from "
        "it, and so are their terms.",
    ]
    if form == "adapter":
        parts[3] += " This folder holds an adapter; it needs the base model."
    path.write_text("\n\n".join(parts) + "\n")
    return path


def written_card(folder: Path) -> Path | None:
    """The card that `write_card` has left in a folder, if it is there."""
    for name in ("README.md", "MODEL_CARD.md"):
        path = folder / name
        if path.is_file() and _MARK in path.read_text(encoding="utf-8", errors="replace"):
            return path
    return None


def _front(about: dict[str, Any], licence: str | None) -> str:
    library = {"adapter": "peft", "gguf": "gguf"}.get(about["form"], "transformers")
    data: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation"}
    if licence:
        data["license"] = licence
    base = about["base_model"]
    if base.count("/") == 1 and not Path(base).exists() and not base.startswith((".", "~")):
        data["base_model"] = base  # a hub id
    data["tags"] = ["long-context", "rope", "linearard"]
    return f"---\n{yaml.safe_dump(data, sort_keys=False)}---"


def _summary(about: dict[str, Any], native: int) -> str:
    return (
        f"`{_short(about['base_model'])}` reads {native:,} tokens; this model was stretched to read "
        f"{about['window']:,}, and trained to stay near the original on short text: see the scores."
    )


def _made(about: dict[str, Any], story: Story, native: int) -> str:
    rope = {k: v for k, v in about["rope"].items() if not isinstance(v, list) and v is not None}
    lines = [
        "- Method: [LinearARD](https://arxiv.org/abs/2604.00004) and what linearard adds to it: a frozen "
        "original with native RoPE teaches its stretched copy.",
        f"- RoPE trained for: {', '.join(f'{k} {v}' for k, v in rope.items())}; native window {native:,}.",
        *(f"- {line}" for line in story.stages),
    ]
    if story.text:
        lines.append(f"- Training text: {story.text}.")
    return "\n".join(lines)


def _scores(story: Story) -> str:
    if not story.scores:
        return "None were recorded with this export. `linearard evaluate RUN` measures them."
    from tabulate import tabulate

    views = [
        view
        for view in (ORIGINAL, STRETCHED, RESTORED)
        if any(view in values for _, values in story.scores)
    ]
    rows = [[label, *(values.get(view, "") for view in views)] for label, values in story.scores]
    headers = ["", *("stretched, untrained" if view == STRETCHED else view for view in views)]
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    verdict = f"\n\nVerdict: {story.verdict}" if story.verdict else ""
    return f"{story.measured} 95 % intervals in brackets.\n\n{table}{verdict}".lstrip()


def _limits(folder: Path, about: dict[str, Any], story: Story) -> str:
    lines = [
        f"- It is not meant for more than {about['window']:,} tokens; nothing is promised beyond.",
        "- It can do no more than the original: errors, biases and refusals of the base are kept.",
    ]
    if 0 < story.longest < about["window"]:
        lines.append(
            f"- No window longer than {story.longest:,} tokens was trained; the scaling alone carries "
            "what is beyond."
        )
    if not story.scores:
        lines.append("- How close it is to the original on short text was not recorded here.")
    if about["form"] == "gguf":
        lines.append(
            f"- Weights are rounded to the file's type. Checked with {about['checked_with']}."
        )
    elif _rope_type(folder) == "yarn":
        lines.append("- Needs transformers 4.51 or later: earlier ones silently use another table.")
    lines += [f"- {note}" for note in about.get("notes", ())]
    if _rope_type(folder) == "longrope" and about["form"] != "gguf":
        lines.append(
            "- llama.cpp's converter drops the frequencies of this configuration. For llama.cpp and Ollama "
            "use `linearard export --format gguf`."
        )
    return "\n".join(lines)


def _rope_type(folder: Path) -> str:
    import json

    path = folder / "config.json"
    if not path.is_file():
        return ""
    config = json.loads(path.read_text())
    rope = config.get("text_config", config).get("rope_parameters") or {}
    return str(rope.get("full_attention", rope).get("rope_type", ""))


def _short(name: str) -> str:
    return display_name(name).rsplit("/", 1)[-1]
