"""One class, one scaling, one way to train: is what is exported what was trained, under both readers?"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from classes import Decoder, rotary_tables

import tiny
from linearard import RestorationConfig, RestorationTrainer
from linearard.errors import CheckpointError, UserError
from linearard.export.merging import packed_in_float32
from linearard.export.probes import beyond, passages
from linearard.export.reader import observe
from linearard.export.reading import ReaderProcess, compare
from linearard.export.save import write_model
from linearard.model import AdapterConfig, ModelConfig, RestorableModel

FACTOR = 4
SCALINGS = ("yarn", "table", "linear", "llama3", "longrope")
ADAPTERS = ("lora", "direct")
#: Scaling, adapter, precision of the base model: all, in an order in which a part of them says most.
TRIALS = [
    (scaling, ADAPTERS[(index + turn) % 2], dtype)
    for dtype in ("float32", "bfloat16")
    for turn in range(2)
    for index, scaling in enumerate(SCALINGS)
]
#: Logits of the restored view against those of a reader, both in float32, the largest over probes.
LARGEST_ERROR = 1e-5
#: The same against the merged model in memory. Some models round constants of their own with their weights
#: (Gemma 3n the root of a half): a model of bfloat16 that is merged in float32 is read without that.
LARGEST_ERROR_AS_WRITTEN = {"float32": 1e-5, "bfloat16": 5e-5}
#: A merge in bfloat16 rounds; what it may cost `merging.Price` says.
LARGEST_ERROR_BFLOAT16 = 0.1


@dataclass
class Verdict:
    """What came of one trial.

    Attributes:
        verdict: `same`; `refused`, in words before training; `wrong`; `failed`, with no words for a user.
        words: of the refusal or of the fault.
        error: relative error of the reader's logits.
        first_error: the same of a first try, where a mixture of experts was tried twice.
        older: the verdict of transformers 4: `same`, `told` (wrong there, and the export says so), `wrong`,
            or `absent` where the class does not exist; with `older_words`.
    """

    verdict: str
    words: str = ""
    error: float | None = None
    first_error: float | None = None
    older: str = ""
    older_words: str = ""


class Trials:
    """The trials of one class, over one saved base model for each precision.

    Args:
        decoder: the class.
        folder: works here.
        reader: of this environment.
        older: of transformers 4, or None.
        older_types: model types that it has.
    """

    def __init__(
        self,
        decoder: Decoder,
        folder: Path,
        reader: ReaderProcess,
        older: ReaderProcess | None,
        older_types: set[str],
    ) -> None:
        self.decoder, self.folder, self.reader = decoder, folder, reader
        self.older = older if decoder.model_type in older_types else None
        self.has_older = older is not None
        self.model = decoder.model()
        tables = rotary_tables(self.model)
        self.native = max(tables, key=len).tolist() if tables else []
        self.count = 0
        self._same_original: bool | None = None  # known after the first model

    def scaling(self, kind: str) -> dict[str, Any]:
        """A scaling of this type for the frequencies that the class has, counted from them as they are."""
        own = getattr(self.model.config, "rope_parameters", None) or {}
        own = own.get("full_attention") or own
        over_itself = {"counted_from": "model"} if own.get("rope_type") == kind else {}
        return self._plain_scaling(kind) | over_itself

    def _plain_scaling(self, kind: str) -> dict[str, Any]:
        half = len(self.native)
        steps = [i / max(half - 1, 1) for i in range(half)]
        return {
            "linear": {"rope_type": "linear", "factor": FACTOR},
            "yarn": {"rope_type": "yarn", "factor": FACTOR},
            "llama3": {
                "rope_type": "llama3",
                "factor": FACTOR,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            "longrope": {
                "rope_type": "longrope",
                "factor": FACTOR,
                "long_factor": [1 + (FACTOR - 1) * step for step in steps],
            },
            "table": {
                "rope_type": "table",
                "factor": FACTOR,
                "inv_freq": [
                    f / (1 + (FACTOR - 1) * s**2) for f, s in zip(self.native, steps, strict=True)
                ],
                "attention_factor": 1.1,
            },
        }[kind]

    def base(self, dtype: str) -> Path:
        """The saved base model."""
        folder = self.folder / f"base-{dtype}"
        if not folder.exists():
            for parameter in self.model.parameters():  # not .to(): that would round the frequencies
                parameter.data = parameter.data.to(getattr(torch, dtype))
            self.model.save_pretrained(folder)
            tiny.tiny_tokenizer().save_pretrained(folder)
        return folder

    def run(self, scaling: str, kind: str, dtype: str) -> Verdict:
        """Train two steps, export, read back, compare.

        Where two experts are as good for a token, the rounding of a merge chooses, and every later token may
        see it. A mixture of experts that is found wrong is tried once more, with other weights.
        """
        found = self._once(scaling, kind, dtype, seed=0)
        if "wrong" in (found.verdict, found.older) and _has_experts(self.model):
            first, found = found, self._once(scaling, kind, dtype, seed=1)
            found.first_error = first.error
        return found

    def _once(self, scaling: str, kind: str, dtype: str, seed: int) -> Verdict:
        self.count += 1
        trainer = None
        with _quiet():
            try:
                restorable = self._restorable(scaling, kind, dtype, seed)
                if dtype == "float32" and not self._is_untouched(restorable):
                    return Verdict("wrong", "the original view is not the base model")
                trainer = _trainer(restorable, self.folder / f"run{self.count}", seed)
                trainer.train()
            except UserError as error:
                words = str(error).replace(str(self.base(dtype)), "the base model")
                if trainer is not None and trainer.state.global_step > 0:
                    return Verdict("wrong", f"refused late: {words}")
                return Verdict("refused", words)
            except Exception as error:
                return Verdict("failed", _words(error))
            return self._export(restorable, dtype)

    def _is_untouched(self, restorable: RestorableModel) -> bool:
        """Whether the original view has the base model's logits, within its window and beyond."""
        if self._same_original is None:
            probes = [{"input_ids": tiny.tokens(1, length)} for length in (41, 3 * tiny.WINDOW)]
            expected = observe(self.model, probes)["logits"]
            with restorable.view("original"):
                got = observe(restorable.model, probes)["logits"]
            self._same_original = _error(got, expected) <= LARGEST_ERROR
        return self._same_original

    def _restorable(self, scaling: str, kind: str, dtype: str, seed: int) -> RestorableModel:
        torch.manual_seed(seed)
        return RestorableModel.load(
            ModelConfig(name=str(self.base(dtype)), device="cpu", dtype=dtype),
            self.scaling(scaling),
            AdapterConfig(kind=kind, r=4, alpha=8.0, dropout=0.0),
        )

    def _export(self, restorable: RestorableModel, dtype: str) -> Verdict:
        out = self.folder / f"out{self.count}"
        out.mkdir()
        try:
            texts = passages(restorable)
            with packed_in_float32(restorable.model):
                expected = observe(restorable.model, texts + beyond(restorable, texts))["logits"]
            about, trained, probes = write_model(restorable, out, "merged")
        except UserError as error:
            return Verdict("wrong", f"refused after training: {error}")
        except Exception as error:
            return Verdict("failed", f"in the export, {_words(error)}")
        most = LARGEST_ERROR if dtype == "float32" else LARGEST_ERROR_BFLOAT16
        if dtype == "bfloat16" and _has_experts(self.model):
            most = math.inf  # rounding chooses other experts: by KL divergence alone

        def read(reader: ReaderProcess) -> tuple[str, str, float | None]:
            try:
                found = reader.read(probes, folder=out, form="merged", device="cpu")
                compare(trained, found, device="cpu")
            except CheckpointError as error:
                return "wrong", str(error), None
            error = _error(found["logits"], expected)
            as_written = _error(found["logits"], trained.observed["logits"])
            same = error <= most and as_written <= LARGEST_ERROR_AS_WRITTEN[dtype]
            return ("same" if same else "wrong"), "", error

        word, words, error = read(self.reader)
        verdict = Verdict(word, words, error)
        if self.older is not None:
            verdict.older, verdict.older_words, _ = read(self.older)
            told = " ".join(about["notes"])
            if verdict.older == "wrong" and "transformers 4" in told:
                verdict.older, verdict.older_words = "told", told
        elif self.has_older:
            verdict.older = "absent"
        return verdict


def _error(got: list[Any], expected: list[Any]) -> float:
    """The relative error of a text's logits, the largest over texts."""
    return max(
        float((g - e).norm() / e.norm())
        for g, e in zip(got, expected, strict=True)
        if g is not None and e is not None
    )


def _has_experts(model: Any) -> bool:
    return any("expert" in name for name, _ in model.named_parameters())


def _trainer(restorable: RestorableModel, folder: Path, seed: int) -> RestorationTrainer:
    blocks = [{"input_ids": row} for row in tiny.tokens(4, 48, seed=seed)]
    args = RestorationConfig(
        output_dir=str(folder),
        window=48,
        learning_rate=1e-2,
        max_steps=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        objective={"relations": {"qk": 1, "v": 1}},
    )
    return RestorationTrainer(restorable, args, blocks)


def _words(error: Exception) -> str:
    """What an error says, and the last of our own lines that it came through."""
    ours = [f for f in traceback.extract_tb(error.__traceback__) if "linearard" in f.filename]
    place = f"{Path(ours[-1].filename).stem}.{ours[-1].name}" if ours else "elsewhere"
    first = (str(error).strip().splitlines() or [""])[0][:300]
    return f"{type(error).__name__} in {place}: {first}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what libraries say of odd configurations."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
