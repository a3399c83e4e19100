"""RULER through lm-eval for original, stretched and restored models: one result file.

    python -m benchmarks ruler --prepare --model MODEL --inputs ruler.jsonl.xz
    python -m benchmarks ruler --run best=RUN --run cpt=RUN --inputs ruler.jsonl.xz --out FILE.json

RUN is the output folder of a run, or a checkpoint. The first gives all three views, every further one its
restored view alone. The prompts depend on the tokenizer alone: `--prepare` makes them on any machine and
keeps them in a file; without `--inputs` they are made first. Every length of every view is written as soon as
it is measured, and what FILE.json has already is not measured again: a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import lzma
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.record import add_arguments, circumstances, write

LENGTHS = (4096, 8192, 16384, 32768, 65536)
SAMPLES, SEEDS = 20, (0, 1, 2)

Docs = Mapping[str, list[dict[str, Any]]]  # by task


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks ruler",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prepare", action="store_true", help="make the prompts and end")
    parser.add_argument("--inputs", type=Path, help="file of prompts (.jsonl.xz)")
    parser.add_argument("--model", help="base model, where it is not where the run found it")
    parser.add_argument("--run", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--samples", type=int, default=SAMPLES, help="a task, length and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--chat", action="store_true", help="in the model's chat template")
    parser.add_argument("--seconds", type=float, default=1e9, help="start nothing after these")
    parser.add_argument("--device", default="auto", help="cuda or cpu (default: what there is)")
    parser.add_argument("--dtype", default="auto")
    add_arguments(parser, required=False)
    options = parser.parse_args(arguments)
    if options.prepare:
        if not (options.model and options.inputs):
            parser.error("--prepare needs --model and --inputs")
        _keep(_made(_tokenizer(options.model), options), options.inputs)
    elif not (options.run and options.out):
        parser.error("name runs with --run NAME=FOLDER, and a file with --out")
    else:
        _measure_all(options)


def _tokenizer(model: str) -> Any:
    from linearard.model import ModelConfig, load_tokenizer

    return load_tokenizer(ModelConfig(name=model))


def _made(tokenizer: Any, options: argparse.Namespace) -> Docs:
    from linearard.evaluation.harness.installed import check_installed
    from linearard.evaluation.harness.tasks import ruler_docs_of

    check_installed(ruler=True)
    return ruler_docs_of(tokenizer, options.lengths, options.samples, options.seeds)


def _keep(docs: Docs, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(path, "wt", encoding="utf-8", preset=6) as file:
        for task, records in docs.items():
            for record in records:
                file.write(json.dumps({"task": task, **record}) + "\n")
    print(f"{sum(map(len, docs.values()))} prompts, {path.stat().st_size / 2**20:.1f} MiB: {path}")


def _read(path: Path, options: argparse.Namespace) -> Docs:
    """Of a file those that are asked for: it may hold more lengths, seeds and samples."""
    docs: dict[str, list[dict[str, Any]]] = {}
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            task = record.pop("task")
            wanted = record["max_length"] in options.lengths and record["seed"] in options.seeds
            if wanted and record["index"] < options.samples:
                docs.setdefault(task, []).append(record)
    return docs


def _measure_all(options: argparse.Namespace) -> None:
    start, found = time.monotonic(), {}
    if options.out.is_file():
        found = json.loads(options.out.read_text())
    docs = _read(options.inputs, options) if options.inputs else None
    for index, entry in enumerate(options.run):
        name, _, folder = entry.partition("=")
        lm, tokenizer, views = _loaded(Path(folder), options)
        if docs is None:
            docs = _made(tokenizer, options)
        if not found:
            found = circumstances(options.commit, lm.device.type) | _settings(lm, options, docs)
        views = views if index == 0 else {"restored": views["restored"]}
        _measure(
            lm, tokenizer, views, docs, found["runs"].setdefault(name, {}), options, start, found
        )
        del lm, views


def _settings(lm: Any, options: argparse.Namespace, docs: Docs) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "lm_eval": version("lm_eval"),
        "model": Path(lm.model.config.name_or_path).name,
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "chat": options.chat,
        "samples": options.samples,
        "seeds": options.seeds,
        "tasks": list(docs),
        "runs": {},
    }


def _loaded(folder: Path, options: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    from linearard.model import ChunkedCausalLM, RestorableModel, load_weights
    from linearard.train import open_checkpoint

    overrides = {"model.device": options.device, "model.dtype": options.dtype}
    if options.model:
        overrides["model.name"] = json.dumps(options.model)
    place, recipe = open_checkpoint(folder, overrides)
    restorable = RestorableModel.load(recipe.model, recipe.rope, recipe.adapter, trainable=False)
    load_weights(restorable, place)
    restorable.model.eval()
    views = {
        n: v for n, v in restorable.views().items() if n in ("original", "stretched", "restored")
    }
    return ChunkedCausalLM(restorable.model), restorable.tokenizer, views


def _measure(
    lm: Any,
    tokenizer: Any,
    views: Mapping[str, Any],
    docs: Docs,
    run: dict[str, Any],
    options: argparse.Namespace,
    start: float,
    found: dict[str, Any],
) -> None:
    """Every length of every view that is not there yet: values and seeds of each task, and seconds."""
    from linearard.evaluation.harness import ask, ruler_tasks
    from linearard.evaluation.harness.language_model import HarnessModel

    model = HarnessModel(lm, tokenizer, batch_size=8, track=lambda what: iter)
    for length in sorted(options.lengths):
        waiting = [view for view in views if str(length) not in run.get(view, {})]
        of_length = {
            task: [record for record in records if record["max_length"] == length]
            for task, records in docs.items()
        }
        tasks = ruler_tasks(of_length, chat=options.chat) if waiting else None
        for view in waiting:
            if time.monotonic() - start > options.seconds:
                print(f"no time left for {view} at {length}", flush=True)
                return
            begun = time.monotonic()
            with views[view]():
                scores = ask(model, tasks)
            took = time.monotonic() - begun
            run.setdefault(view, {})[str(length)] = {
                "seconds": round(took, 1),
                "tasks": {
                    task: {"values": [round(v, 4) for v in score.values], "seeds": score.seeds}
                    for task, score in scores.items()
                },
            }
            write(options.out, found)
            values = [value for score in scores.values() for value in score.values]
            said = f"{view}, {length}: {sum(values) / len(values):.3f} of {len(values)} prompts"
            print(f"{said}, {took:.0f} s", flush=True)
        model.forget()
