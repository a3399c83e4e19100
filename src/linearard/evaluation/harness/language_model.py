"""The model as lm-eval asks it: log-probabilities, and greedy continuations through our own cache.

Import it where lm-eval is installed alone: `check_installed` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from linearard.data import beginning
from linearard.errors import RecipeError
from linearard.evaluation.batching import Track
from linearard.evaluation.continuations import Continuation, score_continuations
from linearard.evaluation.decoding import continue_greedily
from linearard.model import ChunkedCausalLM

_MOST_GENERATED = 256  # where a task says nothing; lm-eval's own default


class HarnessModel(TemplateLM):
    """One model whose views are asked one after another: whoever calls lm-eval enters the view.

    Prompts begin with all that the tokenizer puts before a text, and none is cut, however long.

    Args:
        lm: the model.
        tokenizer: its tokenizer.
        batch_size: most sequences in a forward pass that scores.
        track: makes what shows progress.
    """

    def __init__(
        self,
        lm: ChunkedCausalLM,
        tokenizer: Any,
        *,
        batch_size: int,
        track: Callable[[str], Track],
    ) -> None:
        super().__init__()
        self.tokenizer, self.track = tokenizer, track
        self._lm, self._batch_size = lm, batch_size
        self._prefix = beginning(tokenizer)
        self._known: dict[str, list[int]] = {}

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a continuation without a context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's own caches."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; with what stands before a text, unless `string` has it or it is not wanted."""
        self._encode([string])
        ids = self._known[string]
        before = self._prefix if add_special_tokens is not False else []
        return ids if ids[: len(before)] == before else before + ids

    def forget(self) -> None:
        """Let go of the texts that were encoded: every view asks for the same, so they are kept."""
        self._known.clear()

    def _encode(self, texts: Sequence[str]) -> None:
        """Encode those that are new, in parallel as far as the tokenizer does."""
        if new := list({text for text in texts if text not in self._known}):
            ids = self.tokenizer(new, add_special_tokens=False, verbose=False).input_ids
            self._known.update(zip(new, ids, strict=True))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the model's chat template writes it."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        asked = [
            Continuation(context + continuation, len(context))
            for _, context, continuation in requests
        ]
        scores = score_continuations(
            self._lm, asked, batch_size=self._batch_size, track=self.track("lm-eval")
        )
        return [(score.logprob, score.greedy) for score in scores]

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-probability of continuations, and whether each token was the most likely one."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of whole texts, in windows of the length that the configuration says."""
        window = self._lm.model.config.get_text_config().max_position_embeddings
        asked, counts = [], []
        for request in requests:
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, window, 1)
            pairs = list(map(make_disjoint_window, windows))
            asked += [(None, context, continuation) for context, continuation in pairs]
            counts.append(len(pairs))
        scores = iter(self._loglikelihood_tokens(asked))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, each to its own stop sequences or length."""
        self._encode([request.args[0] for request in requests])
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        wanted = [dict(request.args[1]) for request in requests]
        untils = [_stops(options) for options in wanted]
        limits = [
            int(options.get("max_gen_toks", options.get("max_new_tokens", _MOST_GENERATED)))
            for options in wanted
        ]

        def stop(row: int, ids: list[int]) -> bool:
            return bool(untils[row]) and any(s in self._decoded(ids) for s in untils[row])

        said = continue_greedily(
            self._lm,
            prompts,
            limits,
            ends=self._ends(),
            stop=stop,
            track=self.track("lm-eval: generation"),
        )
        return [_cut(self._decoded(ids), until) for ids, until in zip(said, untils, strict=True)]

    def _decoded(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def _ends(self) -> set[int]:
        own = self._lm.model.generation_config.eos_token_id
        own = own if isinstance(own, list) else [own]
        return {end for end in [*own, self.tokenizer.eos_token_id] if end is not None}


def _stops(options: dict[str, Any]) -> list[str]:
    """The stop sequences of a request.

    Raises:
        RecipeError: it wants to be drawn at random, which would be another text in every view.
    """
    if options.get("do_sample") and options.get("temperature", 1.0) != 0:
        raise RecipeError(
            expected="tasks of lm-eval that generate greedily",
            got=f"one with do_sample, temperature {options.get('temperature', 1.0)}",
            fix="Leave the task out, or give it do_sample: false in a task file of your own.",
        )
    until = options.get("until") or []
    return [until] if isinstance(until, str) else [text for text in until if text]


def _cut(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0]
    return text
