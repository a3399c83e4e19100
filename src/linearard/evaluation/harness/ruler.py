"""RULER's samples, made by lm-eval's own generators: any number of them, for any tokenizer and seed.

lm-eval makes 500 samples a length, and measures every one and every trial on the way to the right size with
the whole tokenizer; at 65,536 tokens that takes hours. Here as many are made as are asked for, and lengths
are counted word by word where that gives what the tokenizer gives. These tasks need no download; RULER's
others read essays or questions.
"""

from __future__ import annotations

import contextlib
import io
import random
import re
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from linearard.errors import DataError

_WORDS = re.compile(r"\s?\S+|\s+(?!\S)")  # a space belongs to the word behind it
SHORTEST = 512
_VARIABLES_ANSWER = 30  # tokens, in lm-eval
_SPARE = 16  # tokens by which a count by words may be off before the tokenizer itself counts

Doc = dict[str, Any]


def ruler_docs(
    task: str, tokenizer: Any, lengths: Sequence[int], samples: int, seed: int
) -> list[Doc]:
    """Samples of one task of RULER; the same for the same arguments.

    Args:
        task: a key of `RULER_TASKS`.
        tokenizer: what prompts are measured with.
        lengths: tokens of a prompt and its answer together, each at least 1,024.
        samples: for each length.
        seed: of all that is drawn.

    Returns:
        lm-eval's records: `input`, `outputs`, `gen_prefix`, `max_length` and `length` (tokens), and `seed`.

    Raises:
        DataError: a length is too short for the task.
    """
    count = _Counter(tokenizer)
    docs: list[Doc] = []
    for length in lengths:
        if (
            length < SHORTEST
        ):  # one of the generators would try for ever to leave room for its answer
            raise _too_short(task, length, f"less than {SHORTEST}")
        made = _made(task, count, length, samples, seed)
        longest = max(_tokens(tokenizer, doc) for doc in made)
        if count.by_words and longest > length:
            count.by_words = False  # another tokenizer than was thought: measure everything
            made = _made(task, count, length, samples, seed)
            longest = max(_tokens(tokenizer, doc) for doc in made)
        if longest > length:
            raise _too_short(task, length, f"prompts of {longest}")
        if not all(doc["outputs"] for doc in made):  # no room for a single word of common ones
            raise _too_short(task, length, "nothing to ask for")
        docs += [doc | {"seed": seed} for doc in made]
    return docs


def _made(task: str, count: _Counter, length: int, samples: int, seed: int) -> list[Doc]:
    try:
        with _drawing(seed), _silence():
            return RULER_TASKS[task](count, length, samples)
    except (AssertionError, ValueError, IndexError) as error:
        raise _too_short(task, length, str(error)[:120] or type(error).__name__) from error


def _too_short(task: str, length: int, found: str) -> DataError:
    return DataError(
        expected=f"a length in which samples of {task} have room",
        got=f"{length} tokens ({found})",
        fix="Correct evaluation.ruler_lengths; 4,096 is what RULER begins with.",
    )


def _needles(key: str, value: str, haystack: str) -> Callable[[_Counter, int, int], list[Doc]]:
    """Needles in a haystack of one sentence repeated, or of other needles."""

    def make(count: _Counter, length: int, samples: int) -> list[Doc]:
        with without_downloads():
            from lm_eval.tasks.ruler.niah_utils import TEMPLATE
            from lm_eval.tasks.ruler.prepare_niah import generate_samples, get_haystack

        count.begin(length, samples)
        return generate_samples(
            get_haystack(type_haystack=haystack),
            max_seq_length=length,
            template=TEMPLATE,
            type_haystack=haystack,
            type_needle_k=key,
            type_needle_v=value,
            num_samples=samples,
            TOKENIZER=count,
        )

    return make


def _variables(count: _Counter, length: int, samples: int) -> list[Doc]:
    from lm_eval.tasks.ruler.vt_utils import generate_input_output as smallest
    from lm_eval.tasks.ruler.vt_utils import sys_vartrack_w_noise_random as make

    # lm-eval's example before each question has at most 500 tokens. Where less than its smallest has room it
    # would try for ever: no tokenizer of words does that, one of bytes does.
    with _drawing(0):
        made = [smallest(noises, 1, 4, is_icl=noises == 5) for noises in (5, 10)]
    of_example, of_sample = (
        len(count(f"{text} {answer}").input_ids) + _VARIABLES_ANSWER + _SPARE
        for text, answer in made
    )
    room = max(500, of_example)
    if room + of_sample > length:
        raise ValueError(f"{room + of_sample} are the least")
    count.begin(room, 1)
    (example,) = make(tokenizer=count, num_samples=1, max_seq_length=room, incremental=5)
    count.begin(length, samples)
    return make(tokenizer=count, num_samples=samples, max_seq_length=length, icl_example=example)


def _common_words(count: _Counter, length: int, samples: int) -> list[Doc]:
    from lm_eval.tasks.ruler.cwe_utils import sys_word_pair_random as make

    count.begin(length, samples)
    return make(num_samples=samples, max_seq_length=length, tokenizer=count)


def _frequent_words(count: _Counter, length: int, samples: int) -> list[Doc]:
    from lm_eval.tasks.ruler.fwe_utils import sys_kwext as make

    count.begin(length, samples)
    return make(tokenizer=count, max_seq_length=length, num_samples=samples)


#: Names as lm-eval has them.
RULER_TASKS: dict[str, Callable[[Any, int, int], list[Doc]]] = {
    "niah_single_1": _needles("words", "numbers", "repeat"),
    "niah_multikey_2": _needles("words", "numbers", "needle"),
    "niah_multikey_3": _needles("uuids", "uuids", "needle"),
    "ruler_vt": _variables,
    "ruler_cwe": _common_words,
    "ruler_fwe": _frequent_words,
}


class _Counter:
    """Stands for a tokenizer where only lengths are asked for.

    Attributes:
        by_words: count words one by one, each once; set to False where the tokenizer merges over them.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, int] = {}
        self._left = 2**31
        self._before = len(tokenizer("").input_ids)
        self.by_words = True
        probe = "The grass is green.\nVAR ABCDE = 12345 41. word-other 0a1b-2c3d: x.\n " * 20
        self.by_words = abs(self._count(probe) - self._whole(probe)) <= _SPARE

    def begin(self, length: int, samples: int) -> None:
        """Before a generator runs: one of them tries for ever where nothing fits, whatever is raised.

        So after more tries than any fitting length needs, every text has no tokens, and what comes of that
        is found too long afterwards.
        """
        self._left = length // 10 + 100 * samples + 1000

    def __call__(self, text: str) -> Any:
        self._left -= 1
        if self._left < 0:
            return SimpleNamespace(input_ids=())
        return SimpleNamespace(input_ids=range(self._count(text)))

    def _count(self, text: str) -> int:
        if not self.by_words:
            return self._whole(text)
        known, words = self._known, _WORDS.findall(text)
        if new := list({word for word in words if word not in known}):
            encoded = self._tokenizer(new, add_special_tokens=False, verbose=False).input_ids
            known.update(zip(new, map(len, encoded), strict=True))
        return self._before + sum(map(known.__getitem__, words))

    def _whole(self, text: str) -> int:
        return len(self._tokenizer(text, verbose=False).input_ids)


def _tokens(tokenizer: Any, doc: Doc) -> int:
    """Of the prompt alone."""
    return len(tokenizer(f"{doc['input']} {doc['gen_prefix']}", verbose=False).input_ids)


@contextlib.contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """The generators draw from three streams of the process; the caller's are put back."""
    import numpy as np
    from lm_eval.tasks.ruler import cwe_utils

    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    cwe_utils.RNG.seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The generators print a line for every size that they try."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def without_downloads() -> Iterator[None]:
    """lm-eval fetches a splitter of sentences when this part is imported; these tasks split none."""
    import nltk

    before = nltk.download
    nltk.download = lambda *args, **kwargs: False
    try:
        yield
    finally:
        nltk.download = before
