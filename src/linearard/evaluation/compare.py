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

from linearard.data import progress_bar
from linearard.errors import RecipeError
from linearard.evaluation.agreement import window_agreement
from linearard.evaluation.batching import Track
from linearard.evaluation.config import EvaluationConfig
from linearard.evaluation.context import compare_with_original
from linearard.evaluation.harness import HarnessScore, ask, harness_results
from linearard.evaluation.inputs import EvaluationInputs
from linearard.evaluation.measures import MEASURES, Measuring, context_part
from linearard.evaluation.meta import collect_meta
from linearard.evaluation.retention import task_results
from linearard.evaluation.tasks import TaskScore, score_task
from linearard.evaluation.texts import TextWindows, text_agreement, text_perplexity
from linearard.model import ChunkedCausalLM, Views, display_name
from linearard.model.view_names import ORIGINAL

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
    texts: TextWindows | None = None,
    progress: bool = True,
    training: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    native_window: int | None = None,
    model_name: str = "",
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
        inputs: what `prepare_inputs` gave for the same documents, texts and configuration, which
            then need not be given again.
        texts: windows of the configuration's texts, as `read_texts` gives them.
        progress: show progress: bars where standard error is a terminal, else a line now and then.
        training: log history per stage, stage -> entries; passed through.
        native_window: tokens that the original reads; None: as the model's configuration says.
        model_name: as in `model.name`; else what its configuration says.

    Returns:
        What `json.dump` accepts (numbers that are not finite are None):
        `{"views": {name: {"perplexity": {window: ...}, "agreement": ..., "context": ...,
        "texts": {name: ...}, "context_texts": {name: ...}, "tasks": {name: ...},
        "task_average": ..., "passkey": ..., "retrieval": ..., "generation": ..., "lm_eval": ...,
        "ruler": ...}}, "meta": ...}`, and
        `training` where given. The parts are described at `window_perplexity`,
        `window_agreement`, `context_losses`, `text_perplexity`, `task_results`,
        `prompts.shares`, `score_retrieval`, `repetition` and `harness_results`; a text's
        agreement stands under its `agreement`. A metric that is off is absent, and so is the
        agreement of the original.

    Raises:
        RecipeError: an unknown view is asked for.
        DataError: as at `EvaluationInputs`.
        ModelError: the model forms its logits in a way that is not supported.
    """
    start = time.perf_counter()
    names = _chosen(views, config)
    lm = ChunkedCausalLM(model)
    if inputs is None:
        inputs = EvaluationInputs(tokenizer, documents, config, texts)
    if native_window is None:
        native_window = model.config.get_text_config().max_position_embeddings

    def track(name: str, what: str) -> Track:
        return lambda steps: progress_bar(
            steps, desc=f"{name}: {what}", leave=False, shown=progress
        )

    results: dict[str, dict[str, Any]] = {}
    tasks: dict[str, dict[str, TaskScore]] = {}
    harness: dict[str, dict[str, HarnessScore]] = {}
    asked = _harness_model(lm, tokenizer, inputs, config)
    with _evaluation_mode(model):
        lm.check(views, torch.arange(min(CHECK_TOKENS, lm.vocab_size)))
        for name in names:
            with views[name]():
                measuring = Measuring(lm, config, name, native_window, partial(track, name))
                results[name] = _measure(inputs, measuring)
                tasks[name] = _score_tasks(lm, inputs, config, partial(track, name))
                if asked is not None:
                    asked.track = partial(track, name)
                    harness[name] = ask(asked, inputs.harness)
        compared = [name for name in names if name != ORIGINAL]
        everyone = partial(track, "all views")
        options = {"batch_size": config.batch_size, "seed": config.seed}
        if compared and inputs.agreement is not None:
            options |= {"track": everyone("agreement")}
            agreement = window_agreement(lm, views, compared, inputs.agreement, **options)
            for name, measured in agreement.items():
                results[name]["agreement"] = measured
        if compared:
            options |= {"track": everyone}
            agreement = text_agreement(lm, views, compared, inputs.texts.short, **options)
            for name, measured in agreement.items():
                for text, part in measured.items():
                    results[name]["texts"][text]["agreement"] = part
    for name, measured in task_results(tasks, ORIGINAL, config.seed).items():
        results[name] |= measured
    compare_with_original(results, config.seed)
    for name, measured in harness_results(harness, ORIGINAL, config.seed).items():
        results[name] |= measured
    meta = collect_meta(model, config, documents)
    if model_name:
        meta["model"] = display_name(model_name)
    meta["seconds"] = round(time.perf_counter() - start, 2)
    result = {"views": results, "meta": meta}
    result |= {"training": training} if training else {}
    return _plain(result)


def prepare_inputs(
    tokenizer: Any,
    views: Iterable[str],
    documents: Sequence[Tensor],
    config: EvaluationConfig,
    texts: TextWindows | None = None,
) -> EvaluationInputs:
    """Read, cut and encode all that `evaluate` will need: for use before hours of training.

    Args:
        tokenizer, documents, config, texts: as for `evaluate`.
        views: the names of the views it will get.

    Raises:
        RecipeError: an unknown view is asked for.
        DataError: as at `EvaluationInputs`.
    """
    _chosen(dict.fromkeys(views), config)
    return EvaluationInputs(tokenizer, documents, config, texts)


def _measure(inputs: EvaluationInputs, measuring: Measuring) -> dict[str, Any]:
    """Everything but the tasks that one view gives by itself."""
    measured: dict[str, Any] = {}
    for measure in MEASURES:
        prepared = inputs.prepared[measure.name]
        if prepared is not None and len(prepared):
            measured[measure.name] = measure.score(prepared, measuring)
    for name, windows in inputs.texts.short.items():
        text = text_perplexity(measuring.lm, windows, **measuring.options(name))
        measured.setdefault("texts", {})[name] = text
    for name, by_length in inputs.long_texts.items():
        text = context_part(by_length, measuring, f"{name}, growing context")
        measured.setdefault("context_texts", {})[name] = text
    return measured


def _score_tasks(
    lm: ChunkedCausalLM,
    inputs: EvaluationInputs,
    config: EvaluationConfig,
    track: Callable[[str], Track],
) -> dict[str, TaskScore]:
    return {
        name: score_task(lm, task, batch_size=config.batch_size, track=track(name))
        for name, task in inputs.tasks.items()
    }


def _harness_model(
    lm: ChunkedCausalLM, tokenizer: Any, inputs: EvaluationInputs, config: EvaluationConfig
) -> Any:
    """The model as lm-eval asks it, in whichever view it is then; None where it is not asked."""
    if inputs.harness is None:
        return None
    from linearard.evaluation.harness.language_model import HarnessModel

    return HarnessModel(lm, tokenizer, batch_size=config.batch_size, track=lambda what: iter)


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
