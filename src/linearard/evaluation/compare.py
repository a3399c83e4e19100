"""Evaluate every view of a model and put the results side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from linearard.errors import RecipeError
from linearard.evaluation.agreement import window_agreement
from linearard.evaluation.batching import Track
from linearard.evaluation.config import EvaluationConfig
from linearard.evaluation.continuations import Encoder
from linearard.evaluation.meta import collect_meta
from linearard.evaluation.passkey import passkey_prompts
from linearard.evaluation.prompts import Prompt, score_prompts
from linearard.evaluation.perplexity import window_perplexity
from linearard.evaluation.task_files import read_tasks
from linearard.evaluation.tasks import Task, encode_task, retention, score_task
from linearard.evaluation.windows import cut_windows
from linearard.model import ChunkedCausalLM, Views
from linearard.model.causal_lm import ORIGINAL

CHECK_TOKENS = 16


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    tokenizer: Any,
    views: Views,
    documents: Sequence[Tensor],
    config: EvaluationConfig,
    *,
    inputs: EvaluationInputs | None = None,
    progress: bool = True,
    relations: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    training: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Measure every view with everything the configuration asks for.

    Inputs are read and checked before anything is computed. The model is put in evaluation mode
    and every module back in the mode it was in.

    Args:
        model: a Hugging Face causal LM.
        tokenizer: its tokenizer.
        views: name to a function that gives a context manager, inside which `model` is that
            view; the first one is "original", the reference of agreement and retention.
        documents: held-out token ids, int64 [tokens] each, on any device.
        config: what to measure.
        inputs: what `prepare_inputs` gave for the same documents and configuration; encoding long
            prompts takes a while, and need not be done twice.
        progress: show progress bars where stderr is a terminal.
        relations: relation KL per layer, view -> relation -> layers; passed through.
        training: log history per stage, stage -> entries; passed through.

    Returns:
        What `json.dump` accepts (numbers that are not finite are None):
        `{"views": {name: {"perplexity": {window: ...}, "agreement": ..., "passkey": ...,
        "tasks": {name: ...}}}, "meta": ...}`, and `relations` and `training` where given.
        The parts are described at `window_perplexity`, `window_agreement`, `score_prompts` and
        `score_task`; a metric that is off is absent, and so is the agreement of the original.

    Raises:
        RecipeError: an unknown view is asked for.
        DataError: documents too short, task files broken, or a pass-key length too short.
        ModelError: the model forms its logits in a way that is not supported.
    """
    start = time.perf_counter()
    names = _chosen(views, config)
    lm = ChunkedCausalLM(model)
    if inputs is None:
        inputs = EvaluationInputs(tokenizer, documents, config)

    def track(name: str, what: str) -> Track:
        return lambda steps: tqdm(
            steps, f"{name}: {what}", leave=False, disable=None if progress else True
        )

    results: dict[str, dict[str, Any]] = {}
    with _evaluation_mode(model):
        lm.check(views, torch.arange(min(CHECK_TOKENS, lm.vocab_size)))
        for name in names:
            with views[name]():
                results[name] = _measure(lm, inputs, config, partial(track, name))
        compared = [name for name in names if name != ORIGINAL]
        if inputs.agreement is not None and compared:
            agreement = window_agreement(
                lm,
                views,
                compared,
                inputs.agreement,
                batch_size=config.batch_size,
                seed=config.seed,
                track=track("all views", "agreement"),
            )
            for name, measured in agreement.items():
                results[name]["agreement"] = measured
    _add_retention(results)
    meta = collect_meta(model, config, documents)
    meta["seconds"] = round(time.perf_counter() - start, 2)
    result = {"views": results, "meta": meta}
    result |= {"relations": relations} if relations else {}
    result |= {"training": training} if training else {}
    return _plain(result)


def prepare_inputs(
    tokenizer: Any, views: Iterable[str], documents: Sequence[Tensor], config: EvaluationConfig
) -> EvaluationInputs:
    """Read, cut and encode all that `evaluate` will need: for use before hours of training.

    Args:
        tokenizer, documents, config: as for `evaluate`.
        views: the names of the views it will get.

    Raises:
        RecipeError: an unknown view is asked for.
        DataError: documents too short, task files broken, or a pass-key length too short.
    """
    _chosen(dict.fromkeys(views), config)
    return EvaluationInputs(tokenizer, documents, config)


class EvaluationInputs:
    """Everything read, cut and encoded before the model is touched."""

    def __init__(
        self, tokenizer: Any, documents: Sequence[Tensor], config: EvaluationConfig
    ) -> None:
        self.perplexity = {
            window: cut_windows(documents, window, config.perplexity_tokens)
            for window in config.perplexity_windows
        }
        self.agreement = (
            cut_windows(documents, config.agreement_window, config.agreement_tokens)
            if config.agreement_window
            else None
        )
        self.passkey: list[Prompt] = passkey_prompts(
            tokenizer,
            config.passkey_lengths,
            config.passkey_depths,
            config.passkey_repeats,
            config.seed,
        )
        self.tasks: dict[str, Task] = {}
        if config.tasks_dir is not None:
            encode = Encoder(tokenizer)
            for name, records in read_tasks(config.tasks_dir, config.task_limit).items():
                self.tasks[name] = encode_task(encode, records)


def _measure(
    lm: ChunkedCausalLM,
    inputs: EvaluationInputs,
    config: EvaluationConfig,
    track: Callable[[str], Track],
) -> dict[str, Any]:
    """Everything that one view gives by itself."""
    options = {"batch_size": config.batch_size, "seed": config.seed}
    measured: dict[str, Any] = {}
    for window, windows in inputs.perplexity.items():
        measured.setdefault("perplexity", {})[str(window)] = window_perplexity(
            lm, windows, track=track(f"perplexity {window}"), **options
        )
    if inputs.passkey:
        measured["passkey"] = score_prompts(lm, inputs.passkey, track=track("pass key"), **options)
    for name, task in inputs.tasks.items():
        measured.setdefault("tasks", {})[name] = score_task(lm, task, track=track(name), **options)
    return measured


def _chosen(views: Mapping[str, Any], config: EvaluationConfig) -> list[str]:
    if next(iter(views), None) != ORIGINAL:
        raise RecipeError(
            expected=f"the first view to be {ORIGINAL!r}",
            got=", ".join(views) or "no view at all",
            fix="Give the original model as the first view.",
        )
    if unknown := [name for name in config.views if name not in views]:
        raise RecipeError(
            expected=f"views among {', '.join(views)}",
            got=", ".join(unknown),
            fix="Correct views in the evaluation part of the recipe.",
        )
    return [name for name in views if name in config.views or not config.views]


def _add_retention(results: dict[str, dict[str, Any]]) -> None:
    """Add `retention` to each task of each view, where the original was evaluated."""
    reference = results.get(ORIGINAL, {}).get("tasks", {})
    for measured in results.values():
        for task, result in measured.get("tasks", {}).items():
            if task in reference:
                result["retention"] = retention(
                    result["score"], reference[task]["score"], result["chance"]
                )


@contextmanager
def _evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _plain(value: Any) -> Any:
    """Copy into what JSON holds; a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
