"""Everything that an evaluation reads, put together before the model is touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from linearard.data import Documents, beginning
from linearard.errors import DataError
from linearard.evaluation.config import EvaluationConfig
from linearard.evaluation.context import growing_windows
from linearard.evaluation.continuations import Encoder
from linearard.evaluation.harness import harness_tasks
from linearard.evaluation.measures import MEASURES
from linearard.evaluation.task_files import read_tasks
from linearard.evaluation.tasks import Task, encode_task
from linearard.evaluation.texts import TextWindows
from linearard.evaluation.windows import cut_windows


class EvaluationInputs:
    """Everything read, cut, encoded and checked.

    Args:
        tokenizer: the model's tokenizer.
        documents: held-out token ids, int64 [tokens] each.
        config: what to measure.
        texts: what `read_texts` gave for the same configuration.

    Raises:
        RecipeError: tasks of lm-eval cannot be had.
        DataError: documents too short, task files broken, a prompt length too short, or a text
            that the configuration names and `texts` lacks.
    """

    def __init__(
        self,
        tokenizer: Any,
        documents: Sequence[Tensor],
        config: EvaluationConfig,
        texts: TextWindows | None = None,
    ) -> None:
        self.harness = harness_tasks(tokenizer, config)
        self.texts = TextWindows() if texts is None else texts
        missing = config.texts.keys() - self.texts.short.keys()
        missing |= config.context_texts.keys() - self.texts.long.keys()
        if missing:
            raise DataError(
                expected=f"windows of the texts {', '.join([*config.texts, *config.context_texts])}",
                got=f"none of {', '.join(sorted(missing))}",
                fix="Give what `read_texts` returns, or leave texts out.",
            )
        #: Of each text, what is read with growing context, by length.
        self.long_texts = {
            name: growing_windows(windows, config.context_lengths, len(beginning(tokenizer)))
            for name, windows in self.texts.long.items()
        }
        documents = Documents(documents, beginning(tokenizer))
        #: By metric, what it reads; None or empty: it is off.
        self.prepared: dict[str, Any] = {
            measure.name: measure.prepare(config, tokenizer, documents) for measure in MEASURES
        }
        self.agreement = (
            cut_windows(documents, config.agreement_window, config.agreement_tokens)
            if config.agreement_window
            else None
        )
        self.tasks: dict[str, Task] = {}
        if config.tasks_dir is not None:
            encode = Encoder(tokenizer)
            tasks = read_tasks(config.tasks_dir, config.task_limit, config.task_split)
            self.tasks = {name: encode_task(encode, records) for name, records in tasks.items()}

    @property
    def task_names(self) -> list[str]:
        """Names of all task files and of all tasks of lm-eval."""
        return [*self.tasks, *(self.harness.loaded["tasks"] if self.harness else ())]
