"""Short-text benchmarks as JSON lines: one file a task, one record a line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linearard.errors import DataError, shown


@dataclass(frozen=True)
class Record:
    """One question.

    Attributes:
        prompts: (context, continuation) pairs; one pair for a last-word record.
        answer: index of the right pair; None for a last-word record, whose one target must be
            the model's greedy choice.
        partial: the pairs share the continuation and differ in context (WinoGrande).
        where: "file:line", for messages.
    """

    prompts: tuple[tuple[str, str], ...]
    answer: int | None
    partial: bool
    where: str


#: Which records of a file a part has, as a slice.
SPLITS = {"all": slice(None), "selection": slice(0, None, 2), "test": slice(1, None, 2)}


def read_tasks(folder: str | Path, limit: int = 0, split: str = "all") -> dict[str, list[Record]]:
    """Read `*.jsonl` of a folder: task name (the file's stem) to records, in file order.

    A record is `{"context", "choices", "answer"}` (optionally with `"context_options"` and
    `"continuation"`: the continuation is scored after each option instead), or
    `{"context", "target"}`.

    Args:
        folder: where the files lie.
        limit: records read of each file; 0: all.
        split: a key of SPLITS. "selection" is every other record of those read, from the first
            on, to choose a recipe by; "test" is the others, to report.

    Raises:
        DataError: no folder, no files, an empty file, mixed kinds in a file, or a broken record
            (named with its file and line).
    """
    paths = sorted(Path(folder).glob("*.jsonl"))
    if not paths:
        raise DataError(
            expected="a folder with *.jsonl task files",
            got=f"{folder} ({'no such files' if Path(folder).is_dir() else 'no such folder'})",
            fix="Set tasks_dir to the folder of task files, or leave it out.",
        )
    tasks = {path.stem: _read_file(path, limit)[SPLITS[split]] for path in paths}
    if empty := [path for path in paths if not tasks[path.stem]]:
        raise _broken(str(empty[0]), "at least two records, for two halves", "one record")
    return tasks


def _read_file(path: Path, limit: int) -> list[Record]:
    records: list[Record] = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if limit and len(records) == limit:
                    break
                if line.strip():
                    records.append(_parse(line, f"{path}:{number}"))
    except OSError as error:
        raise _broken(str(path), "a file that can be read", error.strerror or str(error)) from error
    if not records:
        raise _broken(str(path), "at least one record", "an empty file")
    if len({(record.answer is None, record.partial) for record in records}) > 1:
        raise _broken(str(path), "records of one kind", "several kinds in one file")
    return records


def _parse(line: bytes, where: str) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _broken(where, "one JSON object", str(error)) from error
    if not isinstance(record, dict) or not _is_text(record.get("context"), empty_ok=True):
        raise _broken(where, 'an object with a text "context"', _brief(record))
    context = record["context"]
    if "target" in record:
        if not _is_text(record["target"]):
            raise _broken(where, 'a text "target"', _brief(record["target"]))
        return Record(((context, record["target"]),), None, False, where)

    partial = "context_options" in record
    key = "context_options" if partial else "choices"
    options, answer = record.get(key), record.get("answer")
    if not isinstance(options, list) or len(options) < 2 or not all(map(_is_text, options)):
        raise _broken(where, f'"target", or "{key}" as two or more texts', _brief(options))
    if type(answer) is not int or not 0 <= answer < len(options):
        raise _broken(where, f'"answer" from 0 to {len(options) - 1}', _brief(answer))
    if partial and not _is_text(record.get("continuation")):
        raise _broken(where, 'a text "continuation"', _brief(record.get("continuation")))
    prompts = tuple(
        (option, record["continuation"]) if partial else (context, option) for option in options
    )
    return Record(prompts, answer, partial, where)


def _is_text(value: Any, *, empty_ok: bool = False) -> bool:
    """Text of whole characters; JSON can spell halves, which no tokenizer takes."""
    if not isinstance(value, str) or not (empty_ok or value.strip()):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _brief(value: Any) -> str:
    text = shown(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _broken(where: str, expected: str, got: str) -> DataError:
    return DataError(
        expected=f"{expected} in {where}", got=got, fix="Correct the task file or take it away."
    )
