"""Many texts drawn at once, a token at a time, by a model with a key-value cache.

`generate` of `transformers` starts a thousand short kernels for every token, and starting them takes longer
than running them. Here all texts begin alike and so are equally long: nothing is padded, keys and values
stand in room that grows by some tokens at a time, and a step is recorded once for each size of that room and
then replayed (CUDA graphs). Between two sizes, texts that are over are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from linearard.model import ChunkedCausalLM
from linearard.train.cuda_graphs import recorded

_ROOM = 128  # tokens by which the room grows
_WORTH_RECORDING = 8  # steps
#: Mean KL in nats between the distributions of a step and of the model itself, above which they are of two
#: models. Rounding in bfloat16 makes a thousandth; a wrong position or a hidden token makes tenths.
_OF_ANOTHER_MODEL = 0.02
_TRIED = 4  # texts, and tokens of each


class Guide(Protocol):
    """What the texts are to be: which tokens may be next, and which texts are over.

    Attributes:
        steers: whether `wishes` is to be asked for every token.
        control: ids that no text may have but where `wishes` lets one end a turn.
    """

    steers: bool
    control: Sequence[int]

    def wishes(self, texts: Sequence[int]) -> Tensor:
        """What each of these texts may end with, must not have next, and is given; -1: nothing.

        Returns:
            int64 `[3, texts]` on the CPU.
        """

    def take(self, texts: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        """The next tokens of these texts, some for each."""

    def is_over(self, text: int) -> bool:
        """Whether a text wants no more tokens."""


@torch.no_grad()
def draw_texts(
    lm: ChunkedCausalLM,
    start: Sequence[int],
    count: int,
    length: int,
    guide: Guide,
    told: Callable[[int], None],
) -> None:
    """Draw texts at temperature 1 from all of the vocabulary, and hand them to the guide.

    Args:
        lm: the model; `fits` says whether it can be run so.
        start: ids that every text begins after, at least one.
        count: how many texts.
        length: most tokens of a text.
        guide: takes the tokens.
        told: called with numbers of tokens that were drawn.
    """
    rows = _Rows(lm, start, count, guide.control if guide.steers else None)
    texts, left = list(range(count)), length
    while texts and left:
        steps = rows.make_room(left)
        left -= steps
        for _ in range(steps if guide.steers else 1):
            wishes = guide.wishes(texts) if guide.steers else None
            drawn = rows.draw(1 if guide.steers else steps, wishes)
            guide.take(texts, drawn)
            told(sum(map(len, drawn)))
            if all(map(guide.is_over, texts)):
                return
        kept = [at for at, text in enumerate(texts) if not guide.is_over(text)]
        if len(kept) < len(texts):
            texts = [texts[at] for at in kept]
            rows.keep(kept)


@torch.no_grad()
def fits(lm: ChunkedCausalLM, start: Sequence[int]) -> bool:
    """Whether steps of this kind are what the model computes: tried with a few tokens of a few texts."""
    rows = _Rows(lm, start, _TRIED, None)
    rows.make_room(_TRIED)
    drawn = torch.tensor(rows.draw(_TRIED, None))
    whole = torch.cat([torch.tensor([list(start)] * _TRIED), drawn], dim=1)
    expected = lm.logits(lm.hidden(whole)[:, -1]).log_softmax(-1)
    got = lm.logits(rows.hidden).log_softmax(-1)
    apart = functional.kl_div(got, expected, log_target=True, reduction="batchmean")
    return bool(apart < _OF_ANOTHER_MODEL)


class _Rows:
    """Texts in the making, one a row: the last hidden states, the cache, and a step that can be recorded.

    Attributes:
        hidden: of the last token of each row, `[rows, hidden]`.
    """

    def __init__(
        self, lm: ChunkedCausalLM, start: Sequence[int], count: int, control: Sequence[int] | None
    ) -> None:
        from transformers import Cache

        self._lm = lm
        self._replay: Callable[[], None] | None = None
        begun, hidden = lm.begin(torch.tensor([list(start)]))
        self.hidden = hidden.repeat(count, 1)
        self._used = len(start)
        self._position = torch.tensor([self._used], device=lm.device)
        self._layers = [
            _room_for(layer, count, self._used, self._position) for layer in begun.layers
        ]
        self._cache = Cache(layers=self._layers)
        self._control = None
        if control is not None:
            known = sorted(token for token in control if token < lm.vocab_size)
            self._control = torch.tensor(known, dtype=torch.long, device=lm.device)

    def make_room(self, most: int) -> int:
        """Room for further tokens, at most so many; how many there is room for."""
        self._replay, self._due = None, False  # a recording's memory goes first
        end = min((self._used // _ROOM + 1) * _ROOM, self._used + most)
        self._end, self._first = end, self._used
        capacity = -(-end // 16) * 16  # attention with a mask wants a round length
        for layer in self._layers:
            layer.grow(capacity)
        count, device = len(self.hidden), self._lm.device
        self._columns = torch.arange(capacity, device=device)
        self._drawn = torch.zeros(count, end - self._used, dtype=torch.long, device=device)
        self._wishes = torch.full((3, count), -1, dtype=torch.long, device=device)
        return end - self._used

    def draw(self, steps: int, wishes: Tensor | None) -> list[list[int]]:
        """The next tokens of each row."""
        if wishes is not None:
            self._wishes.copy_(wishes)
        for _ in range(steps):
            if self._replay is None and self._due and self._end - self._used >= _WORTH_RECORDING:
                self._replay, self._due = recorded(self._step), False
            if self._replay is None:
                self._step()
            else:
                self._replay()
            self._due = self._due or self._used == self._first  # what has run once can be recorded
            self._used += 1
        last = self._used - self._first
        return self._drawn[:, last - steps : last].tolist()

    def keep(self, rows: list[int]) -> None:
        """Leave out all other rows."""
        self._replay = None
        index = torch.tensor(rows, device=self._lm.device)
        self.hidden = self.hidden[index]
        for layer in self._layers:
            layer.keep(index)

    def _step(self) -> None:
        """Draw a token for each row and read it; no value of it is looked at."""
        chosen = [self._chosen(rows) for rows in self._lm.chunks(len(self.hidden))]
        tokens = torch.cat(chosen)[:, None]
        self._drawn.index_copy_(1, self._position - self._first, tokens)
        seen = (self._columns <= self._position)[None, None, None]
        positions = self._position.expand(len(tokens), 1)
        self.hidden.copy_(self._lm.go_on(tokens, positions, self._cache, seen))
        self._position += 1

    def _chosen(self, rows: slice) -> Tensor:
        logits = self._lm.logits(self.hidden[rows])
        given = None
        if self._control is not None:
            may_end, must_not, given = self._wishes[:, rows]
            hold_back(logits, self._control, may_end, must_not)
        # The largest of logits plus Gumbel's noise is a draw from their distribution.
        noise = torch.empty_like(logits).exponential_().log_()
        tokens = logits.sub_(noise).argmax(-1)
        return tokens if given is None else torch.where(given >= 0, given, tokens)


def hold_back(scores: Tensor, control: Tensor, may_end: Tensor, must_not: Tensor) -> None:
    """Leave the tokens of a template no chance, in place, but for the one that may end a row's turn.

    Of a large vocabulary only a few columns are touched: a mask of all of it for every row takes longer than
    the model does.

    Args:
        scores: `[rows, vocabulary]`.
        control: int64 ids of the template.
        may_end: int64 `[rows]`, the token that keeps its score, or -1.
        must_not: int64 `[rows]`, one that has no chance either, or -1.
    """
    end, not_now = may_end.clamp(min=0)[:, None], must_not.clamp(min=0)[:, None]
    held = scores.gather(1, end)
    scores.index_fill_(1, control, -torch.inf)
    barred = scores.gather(1, end)
    scores.scatter_(1, end, torch.where(may_end[:, None] >= 0, held, barred))
    left = scores.gather(1, not_now)
    scores.scatter_(1, not_now, left.masked_fill(must_not[:, None] >= 0, -torch.inf))


def _room_for(layer: Any, rows: int, used: int, position: Tensor) -> Any:
    """Room for one layer's keys and values, behind the interface of a cache's layer."""
    from transformers.cache_utils import DynamicLayer

    class Room(DynamicLayer):
        """Keys and values `[rows, kv_heads, capacity, head_dim]`; all are shown, a mask hides the rest."""

        def __init__(self) -> None:
            super().__init__()
            self.lazy_initialization(layer.keys, layer.values)
            self.keys, self.values = (
                states[:, :, :used].expand(rows, -1, -1, -1)
                for states in (layer.keys, layer.values)
            )

        def grow(self, capacity: int) -> None:
            further = capacity - self.keys.shape[2]
            if further > 0:
                self.keys = functional.pad(self.keys, (0, 0, 0, further))
                self.values = functional.pad(self.values, (0, 0, 0, further))

        def keep(self, index: Tensor) -> None:
            self.keys, self.values = self.keys[index], self.values[index]

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            """Those of one further token, laid where `position` says; all that there is room for."""
            self.keys.index_copy_(2, position, key_states)
            self.values.index_copy_(2, position, value_states)
            return self.keys, self.values

    return Room()
