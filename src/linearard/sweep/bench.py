"""One process's bench: the base model, tokenizer and evaluation inputs once, runs one after another."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import json
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linearard.errors import CheckpointError, RecipeError, UserError
from linearard.evaluation import (
    EvaluationConfig,
    EvaluationInputs,
    held_out_documents,
    prepare_inputs,
    read_texts,
)
from linearard.model import (
    ModelConfig,
    RestorableModel,
    load_config,
    load_model,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
)
from linearard.model.view_names import UNTRAINED
from linearard.recipe import Recipe, with_ruler_lengths
from linearard.rope import check_scaling
from linearard.storage import write_json
from linearard.sweep.folder import VIEWS, Task
from linearard.sweep.plan import Job, naming_arm
from linearard.sweep.views import measure_views
from linearard.train import RESULT_FILE, Trackers, prepare_run
from linearard.train.folder import claim_folder, remove_weights


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        job: what was run.
        seconds: how long it took.
        message: why it failed; empty if it did not.
        broken: whether the process should not run anything else.
    """

    job: Job
    seconds: float = 0.0
    message: str = ""
    broken: bool = False


@dataclass
class _Prepared:
    """What is evaluated on, the same for every run with one evaluation."""

    documents: list[Tensor]
    inputs: EvaluationInputs


class Bench:
    """Runs the jobs of a sweep in this process.

    Args:
        folder: of the sweep.
        keep_checkpoints: leave checkpoints and final weights on disk.
        sources: of another bench, which has read models' configurations and tokenizers already.
    """

    def __init__(
        self,
        folder: Path,
        keep_checkpoints: bool,
        sources: dict[str, tuple[Any, Any]] | None = None,
    ) -> None:
        from transformers.utils import logging

        logging.disable_progress_bar()  # a bar for every loaded model would drown the runs' lines
        self._folder, self._keep = folder, keep_checkpoints
        #: Configuration and tokenizer by model.
        self.sources: dict[str, tuple[Any, Any]] = dict(sources or {})
        self._prepared: dict[str, _Prepared] = {}
        self._base: tuple[ModelConfig, Any] | None = None

    def check(self, job: Job, *, progress: bool) -> None:
        """Refuse whatever can be refused without weights; nothing is left on disk but cached tokens.

        Args:
            job: a run.
            progress: show a bar while tokenising.

        Raises:
            UserError: something in the arm's recipe cannot work.
        """
        recipe = job.recipe
        with naming_arm(job.arm):
            views = list(UNTRAINED)
            if job.trains:
                with tempfile.TemporaryDirectory() as place:
                    elsewhere = dataclasses.replace(recipe, output_dir=place)
                    run = prepare_run(elsewhere, progress=progress, **self._source(recipe.model))
                    run.claim.close()
                views = run.views
            else:
                resolve_dtype(recipe.model.dtype, resolve_device(recipe.model.device))
                check_scaling(recipe.rope, self._source(recipe.model)["config"])
            config = self._evaluation(recipe)
            if job.trains and (unknown := [name for name in config.views if name not in views]):
                raise RecipeError(
                    expected=f"evaluation.views among {', '.join(views)}",
                    got=", ".join(unknown),
                    fix="Correct evaluation.views, or leave it out.",
                )
            self._inputs(recipe, config)

    def close(self) -> None:
        """Let go of the base model."""
        self._base = None
        gc.unfreeze()
        gc.collect()

    def attempt(self, task: Task) -> Outcome:
        """Run a job to its result; a failure is noted in its folder and never raised."""
        job, started = task.job, time.perf_counter()
        message, trace = "", ""
        try:
            self._run(job, task.fresh)
        except UserError as error:
            # Not its advice, which is for a single run.
            message = f"expected {error.expected}, got {error.got}"
        except torch.OutOfMemoryError as error:
            message = f"out of memory: {str(error).split('. ')[0]}"
        except Exception as error:  # whatever it is, the other arms are worth having
            lines = str(error).strip().splitlines() or [""]
            message, trace = f"{type(error).__name__}: {lines[0]}", traceback.format_exc()
        gc.collect()  # a model and its tap refer to each other
        if torch.cuda.is_available() and not trace:
            torch.cuda.empty_cache()
        if message:
            note_failure(job, message, trace)
        return Outcome(job, time.perf_counter() - started, message, broken=bool(trace))

    def _run(self, job: Job, fresh: bool) -> None:
        started = time.perf_counter()
        recipe, source = job.recipe, self._source(job.recipe.model)
        again = {"resume": not fresh, "overwrite": fresh}
        run = prepare_run(recipe, **again, **source, progress=False) if job.trains else None
        claim = run.claim if run else claim_folder(job.folder, recipe, **again)
        with claim:
            claim.take()  # also where nothing trains, and so that no old result stands for a failed run
            job.failure_note.unlink(missing_ok=True)
            keep = self._keep
            try:
                restorable = self._restorable(recipe, source["tokenizer"])
                histories, summaries = {}, {}
                with Trackers(recipe, job.folder) as trackers:
                    if run:
                        trained = run.train(restorable, trackers)
                        histories, summaries = trained.histories, trained.summaries
                    config = self._evaluation(recipe)
                    prepared = self._inputs(recipe, config)
                    result = measure_views(
                        restorable,
                        job,
                        config,
                        prepared.documents,
                        prepared.inputs,
                        self._folder / VIEWS,
                    )
                    trackers.evaluated(result)
            except KeyboardInterrupt:
                keep = True  # a resumed sweep goes on from what was saved for it
                raise
            finally:
                if not keep:
                    _remove_weights(job.folder)
            result |= {
                "training": histories,
                "stages": summaries,
                "sweep": {
                    "arm": job.arm,
                    "seed": job.seed,
                    "view": job.view,
                    "seconds": round(time.perf_counter() - started, 3),
                },
            }
            write_json(job.folder / RESULT_FILE, result)  # last: it is what makes the run finished

    def _restorable(self, recipe: Recipe, tokenizer: Any) -> RestorableModel:
        """A copy of the base with the views and the adapter of a recipe, as a run of its own has it."""
        from transformers import set_seed

        if self._base is None or self._base[0] != recipe.model:
            self.close()  # never two of them in memory
            self._base = recipe.model, load_model(recipe.model, tokenizer)[0]
            # Every stage and run collects garbage, which takes up to a second with all that the
            # libraries hold; what is here now will stay.
            gc.freeze()
        set_seed(recipe.seed)  # LoRA's weights are drawn
        model = copy.deepcopy(self._base[1])
        return RestorableModel(
            model, tokenizer, recipe.rope, recipe.adapter, name=recipe.model.name
        )

    def _source(self, model: ModelConfig) -> dict[str, Any]:
        """`config` and `tokenizer` of a model, read once: from a GGUF file each takes seconds."""
        key = json.dumps(dataclasses.asdict(model))
        if key not in self.sources:
            self.sources[key] = load_config(model), load_tokenizer(model)
        config, tokenizer = self.sources[key]
        return {"config": config, "tokenizer": tokenizer}

    def _evaluation(self, recipe: Recipe) -> EvaluationConfig:
        if recipe.evaluation is None:
            raise RecipeError(
                expected="a section 'evaluation' in the recipe",
                got="none",
                fix="Add evaluation: to the base; a sweep compares its results.",
            )
        complete = with_ruler_lengths(recipe, self._source(recipe.model)["config"]).evaluation
        assert complete is not None
        return complete

    def _inputs(self, recipe: Recipe, config: EvaluationConfig) -> _Prepared:
        sections = [recipe.model, recipe.data, dataclasses.replace(config, views=[])]
        key = json.dumps(list(map(dataclasses.asdict, sections)))
        if key not in self._prepared:
            tokenizer = self._source(recipe.model)["tokenizer"]
            documents = held_out_documents(recipe.data, tokenizer, config)
            bare = dataclasses.replace(config, views=[])
            texts = read_texts(config, recipe.data, tokenizer)
            inputs = prepare_inputs(tokenizer, UNTRAINED, documents, bare, texts)
            self._prepared[key] = _Prepared(documents, inputs)
        return self._prepared[key]


def note_failure(job: Job, message: str, trace: str = "") -> None:
    """Leave the reason of a failure where the result would be."""
    with contextlib.suppress(OSError):
        job.failure_note.parent.mkdir(parents=True, exist_ok=True)
        note = {"message": message} | ({"traceback": trace} if trace else {})
        write_json(job.failure_note, note)


def _remove_weights(folder: Path) -> None:
    try:
        remove_weights(folder)
    except OSError as error:
        raise CheckpointError(
            expected="weights that can be removed after the evaluation",
            got=f"{folder}: {error.strerror or error}",
            fix="Set keep_checkpoints to true, or choose another output_dir.",
        ) from error
