"""What an evaluation measures; the configuration checks itself."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from typing import Any

from linearard.errors import RecipeError
from linearard.evaluation.generation import LOOP_TOKENS
from linearard.evaluation.puzzles import PUZZLES
from linearard.evaluation.task_files import SPLITS


@dataclass
class EvaluationConfig:
    """Sizes and budgets of an evaluation. An empty list, a zero or no folder switches a metric off.

    Raises:
        RecipeError: a field has the wrong type or is out of range.
    """

    views: list[str] = field(
        default_factory=list,
        metadata={"help": "Views to evaluate by name; empty: every view of the model."},
    )
    perplexity_windows: list[int] = field(
        default_factory=lambda: [2048],
        metadata={"help": "Window sizes in tokens for perplexity; empty: no perplexity."},
    )
    perplexity_tokens: int = field(
        default=131_072,
        metadata={"help": "Tokens read per window size; at least one window is read."},
    )
    agreement_window: int = field(
        default=2048,
        metadata={"help": "Window in tokens for KL and top-1 agreement; 0: no agreement."},
    )
    agreement_tokens: int = field(
        default=65_536,
        metadata={"help": "Tokens read for agreement; at least one window is read."},
    )
    passkey_lengths: list[int] = field(
        default_factory=lambda: [2048],
        metadata={"help": "Prompt lengths in tokens for pass-key retrieval; empty: none."},
    )
    passkey_depths: list[float] = field(
        default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0],
        metadata={"help": "Where the pass key stands in the prompt: 0 is its start, 1 its end."},
    )
    passkey_repeats: int = field(
        default=2, metadata={"help": "Prompts, each with its own key, per length and depth."}
    )
    tasks_dir: str | None = field(
        default=None, metadata={"help": "Folder of *.jsonl task files; none: no tasks."}
    )
    task_limit: int = field(default=500, metadata={"help": "Records read per task file; 0: all."})
    task_split: str = field(
        default="all",
        metadata={
            "help": "Which of the records read are scored: all; selection (the 1st, 3rd, ...), to "
            "choose a recipe by; or test (the 2nd, 4th, ...), to report what was chosen."
        },
    )
    texts: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "help": "Further held-out texts by name, each in the forms of data.train: perplexity "
            "and agreement on windows of agreement_window tokens. Empty: none."
        },
    )
    texts_tokens: int = field(default=32_768, metadata={"help": "Tokens read of each text."})
    retrieval_lengths: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Prompt lengths in tokens for retrieval from held-out text; empty: none."
        },
    )
    retrieval_tasks: list[str] = field(
        default_factory=lambda: list(PUZZLES),
        metadata={
            "help": "What is hidden there: single (a number), word, multikey (several, one asked "
            "for), multivalue, multiquery (all asked for), variables (a chain of assignments)."
        },
    )
    retrieval_depths: list[float] = field(
        default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0],
        metadata={"help": "Where it is hidden, as with the pass key."},
    )
    retrieval_repeats: int = field(
        default=2, metadata={"help": "Prompts per retrieval task, length and depth."}
    )
    generation_prompts: int = field(
        default=0,
        metadata={"help": "Prompts to generate from greedily, for repetition; 0: none."},
    )
    generation_tokens: int = field(
        default=256, metadata={"help": "Tokens generated for each prompt."}
    )
    generation_prompt_tokens: int = field(
        default=64, metadata={"help": "Tokens of each prompt, out of held-out documents."}
    )
    batch_size: int = field(
        default=8,
        metadata={"help": "Most sequences in one forward pass (fewer when they are long)."},
    )
    seed: int = field(
        default=0, metadata={"help": "Seed of pass keys, retrieval and bootstrap intervals."}
    )

    def __post_init__(self) -> None:
        self.tasks_dir = None if self.tasks_dir is None else str(self.tasks_dir)
        check = _CHECKS
        for item in fields(self):
            if item.name in check:
                test, expected = check[item.name]
                value = getattr(self, item.name)
                if not test(value):
                    raise RecipeError(
                        expected=f"{item.name} to be {expected}",
                        got=repr(value),
                        fix=f"Correct {item.name} in the evaluation part of the recipe.",
                    )
        if self.texts and self.agreement_window < 2:
            raise RecipeError(
                expected="an agreement_window of at least 2, for texts are cut into such windows",
                got=repr(self.agreement_window),
                fix="Set agreement_window, or leave texts out.",
            )


def _is_int(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= least


def _is_list(element: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list) and all(map(element, value)) and len(set(value)) == len(value)
    )


def _is_one_of(names: Collection[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in names


def _is_mapping(value: Any) -> bool:
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else [None]
    return all(isinstance(part, str) and part.strip() for part in parts)


_WINDOWS = (_is_list(_is_int(2)), "a list of different whole numbers of at least 2")
_DEPTHS = (
    _is_list(lambda depth: type(depth) in (int, float) and 0 <= depth <= 1),
    "a list of different numbers between 0 and 1",
)
_BUDGET = (_is_int(1), "a whole number of at least 1")
_COUNT = (_is_int(0), "a whole number of at least 0")
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "views": (_is_list(lambda name: isinstance(name, str)), "a list of different names"),
    "perplexity_windows": _WINDOWS,
    "perplexity_tokens": _BUDGET,
    "agreement_window": _COUNT,
    "agreement_tokens": _BUDGET,
    "passkey_lengths": _WINDOWS,
    "passkey_depths": _DEPTHS,
    "passkey_repeats": _BUDGET,
    "task_limit": _COUNT,
    "task_split": (_is_one_of(SPLITS), f"one of {', '.join(SPLITS)}"),
    "texts": (_is_mapping, "a mapping of names to sources"),
    "texts_tokens": _BUDGET,
    "retrieval_lengths": _WINDOWS,
    "retrieval_tasks": (_is_list(_is_one_of(PUZZLES)), f"different names of {', '.join(PUZZLES)}"),
    "retrieval_depths": _DEPTHS,
    "retrieval_repeats": _BUDGET,
    "generation_prompts": _COUNT,
    "generation_tokens": (
        _is_int(LOOP_TOKENS),
        f"a whole number of at least {LOOP_TOKENS}, the tokens of a loop",
    ),
    "generation_prompt_tokens": (_is_int(2), "a whole number of at least 2"),
    "batch_size": _BUDGET,
    "seed": _COUNT,
}
