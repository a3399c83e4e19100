"""What an evaluation measures; the configuration checks itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from linearard.evaluation.generation import LOOP_TOKENS
from linearard.evaluation.puzzles import PUZZLES
from linearard.evaluation.task_files import SPLITS
from linearard.fields import (
    LARGEST_SEED,
    Beside,
    Rule,
    a_list,
    a_mapping,
    check_fields,
    described,
    flag,
    number,
    one_of,
    text,
    user_path,
    whole,
)

#: Among `lm_eval`: six of RULER's tasks, which need no download; and the length that RULER begins with.
RULER, RULER_BEGINS = "ruler", 4096
_WINDOWS = a_list(whole(2, 1 << 27))
_DEPTHS = a_list(number(0, 1))
_BUDGET, _COUNT = whole(1), whole(0)


def _is_task_name(value: object) -> bool:
    """A path would be a file that runs code: `lm_eval_dir` is for those."""
    if not isinstance(value, str) or value.endswith((".yaml", ".yml")):
        return False
    return bool(re.fullmatch(r"[\w.+:-]{1,200}", value))


_TASK = Rule(_is_task_name, "a task's name, which is no path")


@dataclass
class EvaluationConfig:
    """Sizes and budgets of an evaluation. An empty list, a zero or no folder switches a metric off.

    Raises:
        RecipeError: a field has the wrong type or is out of range.
    """

    views: list[str] = described(
        list,
        "Views to evaluate by name; empty: every view of the model.",
        a_list(text("a name")),
    )
    perplexity_windows: list[int] = described(
        lambda: [2048],
        "Window sizes in tokens for perplexity; empty: no perplexity.",
        _WINDOWS,
    )
    perplexity_tokens: int = described(
        131_072,
        "Tokens read per window size; at least one window is read.",
        _BUDGET,
    )
    agreement_window: int = described(
        2048,
        "Window in tokens for KL and top-1 agreement; 0: no agreement.",
        _COUNT,
        Beside(
            lambda c: not c.texts or c.agreement_window >= 2,
            "at least 2 beside texts, which are cut into such windows",
            "Set agreement_window, or leave texts out.",
        ),
    )
    agreement_tokens: int = described(
        65_536,
        "Tokens read for agreement; at least one window is read.",
        _BUDGET,
    )
    context_lengths: list[int] = described(
        list,
        "How much is read, in tokens, before and with the same last tokens of long held-out windows: "
        "what a longer window pays. Empty: not measured.",
        _WINDOWS,
    )
    context_windows: int = described(
        4,
        "Such windows, of the longest of context_lengths each.",
        _BUDGET,
    )
    context_texts: dict[str, str] = described(
        dict,
        "Further held-out texts by name, each in the forms of data.train, whose joined documents are "
        "read with growing context, too. Empty: none.",
        a_mapping(text()),
        Beside(
            lambda c: not c.context_texts or c.context_lengths,
            "empty without context_lengths",
            "Set context_lengths, or leave context_texts out.",
        ),
    )
    passkey_lengths: list[int] = described(
        lambda: [2048],
        "Prompt lengths in tokens for pass-key retrieval; empty: none.",
        _WINDOWS,
    )
    passkey_depths: list[float] = described(
        lambda: [0.0, 0.25, 0.5, 0.75, 1.0],
        "Where the pass key stands in the prompt: 0 is its start, 1 its end.",
        _DEPTHS,
    )
    passkey_repeats: int = described(
        2,
        "Prompts, each with its own key, per length and depth.",
        _BUDGET,
    )
    tasks_dir: str | None = described(
        None,
        "Folder of *.jsonl task files; none: no tasks.",
        text().or_null(),
    )
    task_limit: int = described(
        500,
        "Records read per task file; 0: all.",
        _COUNT,
    )
    task_split: str = described(
        "all",
        "Which of the records read are scored: all; selection (the 1st, 3rd, ...), to "
        "choose a recipe by; or test (the 2nd, 4th, ...), to report what was chosen.",
        one_of(SPLITS),
    )
    texts: dict[str, str] = described(
        dict,
        "Further held-out texts by name, each in the forms of data.train: perplexity "
        "and agreement on windows of agreement_window tokens. Empty: none.",
        a_mapping(text()),
    )
    texts_tokens: int = described(
        32_768,
        "Tokens read of each text.",
        _BUDGET,
    )
    retrieval_lengths: list[int] = described(
        list,
        "Prompt lengths in tokens for retrieval from held-out text; empty: none.",
        _WINDOWS,
    )
    retrieval_tasks: list[str] = described(
        lambda: list(PUZZLES),
        "What is hidden there: single (a number), word, multikey (several, one asked "
        "for), multivalue, multiquery (all asked for), variables (a chain of assignments).",
        a_list(one_of(PUZZLES)),
    )
    retrieval_depths: list[float] = described(
        lambda: [0.0, 0.25, 0.5, 0.75, 1.0],
        "Where it is hidden, as with the pass key.",
        _DEPTHS,
    )
    retrieval_repeats: int = described(
        2,
        "Prompts per retrieval task, length and depth.",
        _BUDGET,
    )
    generation_prompts: int = described(
        0,
        "Prompts to generate from greedily, for repetition; 0: none.",
        _COUNT,
    )
    generation_tokens: int = described(
        256,
        "Tokens generated for each prompt.",
        whole(LOOP_TOKENS),
    )
    generation_prompt_tokens: int = described(
        64,
        "Tokens of each prompt, out of held-out documents.",
        whole(2),
    )
    lm_eval: list[str] = described(
        list,
        "Tasks of lm-eval by name, among them ruler: six tasks of RULER that need no download. "
        "Empty: none. Needs the extra linearard[lm-eval].",
        a_list(_TASK),
    )
    lm_eval_dir: str | None = described(
        None,
        "Folder of task files of lm-eval (*.yaml) of your own. They can name code that runs as "
        "you, so it has to be given on the command line.",
        text().or_null(),
    )
    lm_eval_limit: int = described(
        0,
        "Records asked of each task of lm-eval but ruler; 0: all.",
        _COUNT,
    )
    lm_eval_fewshot: int | None = described(
        None,
        "Examples before each question; none: as each task says.",
        whole(0, 1000).or_null(),
    )
    lm_eval_chat: bool = described(
        False,
        "Ask in the model's chat template.",
        flag(),
    )
    ruler_lengths: list[int] | None = described(
        None,
        "Lengths of ruler's prompts and answers together, in tokens; null: 4,096 and four times that, as "
        "often as it fits, up to the window that the recipe trains for.",
        a_list(whole(1024, 1 << 27), least=1).or_null(),
    )
    ruler_samples: int = described(
        20,
        "Prompts per task, length and seed of ruler.",
        _BUDGET,
    )
    ruler_seeds: list[int] = described(
        lambda: [0],
        "Seeds that ruler's prompts are made with; each makes others.",
        a_list(whole(0, LARGEST_SEED), least=1),
    )
    batch_size: int = described(
        8,
        "Most sequences in one forward pass (fewer when they are long).",
        _BUDGET,
    )
    seed: int = described(
        0,
        "Seed of pass keys, retrieval and bootstrap intervals.",
        whole(0, LARGEST_SEED),
    )

    def __post_init__(self) -> None:
        if isinstance(self.tasks_dir, Path):
            self.tasks_dir = str(self.tasks_dir)
        check_fields(self, "evaluation")
        if self.tasks_dir is not None:
            self.tasks_dir = user_path(self.tasks_dir, "evaluation.tasks_dir")
        if self.lm_eval_dir is not None:
            self.lm_eval_dir = user_path(self.lm_eval_dir, "evaluation.lm_eval_dir")
