"""Conversations of which a model writes both sides, in the frame of its chat template."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from linearard.train.chat_template import ChatFrame
from linearard.train.row_sampling import hold_back

_EXCHANGES = (1, 3)  # of a conversation, from and to
_TURN_TOKENS = 640  # of a turn that does not end by itself before
_NOTHING = (-1, -1, -1)


class Conversation:
    """One conversation while its tokens come in; between turns it says which token must be next.

    It ends with the last answer, with a turn without a word, or within a turn that has become too long; a
    question without an answer is no part of it.

    Args:
        frame: what stands around the turns.
        exchanges: turns of the user, each with its answer.
        room: most tokens behind `frame.start`.
    """

    def __init__(self, frame: ChatFrame, exchanges: int, room: int) -> None:
        self._frame, self._most, self._room = frame, 2 * exchanges, room
        self.turns: list[list[int]] = [[]]
        self.done = False
        self._ahead: list[int] = []  # tokens of the template that are still to be written

    @property
    def next(self) -> int | None:
        """The token that the template has next; None where the writer is free."""
        return self._ahead[0] if self._ahead else None

    @property
    def wish(self) -> tuple[int, int, int]:
        """See `Guide.wishes`: a turn may not end before its first token; where its end takes several tokens,
        they are letters, which are neither held back nor allowed.
        """
        if self.done:
            return _NOTHING
        if self._ahead:
            return (-1, -1, self._ahead[0])
        cue = self._frame.separator(len(self.turns) - 1).cue
        if len(cue) > 1:
            return _NOTHING
        return (cue[0], -1, -1) if self.turns[-1] else (-1, cue[0], -1)

    def write(self, token: int) -> bool:
        """Take the next token; whether something else is wished for then."""
        if self.done:
            return False
        self._room -= 1
        if given := bool(self._ahead):
            self._ahead.pop(0)
        else:
            self._speak(token)
        if not self._room or len(self.turns[-1]) == _TURN_TOKENS:
            self.done = True
        return self.done or given or bool(self._ahead) or len(self.turns[-1]) < 2

    def _speak(self, token: int) -> None:
        turn = self.turns[-1]
        turn.append(token)
        separator = self._frame.separator(len(self.turns) - 1)
        length = len(separator.cue)
        if tuple(turn[-length:]) != separator.cue:
            return
        del turn[-length:]
        if not turn or len(self.turns) == self._most:
            self.done = True
        else:
            self.turns.append([])
            self._ahead = list(separator.rest)

    def text(self, decode: Callable[[list[int]], str]) -> str:
        """The conversation as the template writes it; empty without an answer."""
        turns: list[str] = []
        for ids in self.turns:
            # As templates do; what a turn is made of has no space around it.
            if not (turn := decode(ids).strip()):
                break
            turns.append(turn)
        whole = len(turns) // 2 * 2
        return self._frame.text(turns[:whole]) if whole else ""


class ConversationWriter:
    """Steers the writing of a batch of conversations through the frame of their template.

    It is a `Guide` of `draw_texts`. For `generate` it is a logits processor and, by `ended`, a criterion to
    stop by.

    Args:
        frame: what stands around the turns.
        count: conversations of the batch.
        room: most tokens of each, behind `frame.start`.
        chance: draws the number of exchanges.
    """

    steers = True

    def __init__(self, frame: ChatFrame, count: int, room: int, chance: random.Random) -> None:
        self.conversations = [
            Conversation(frame, chance.randint(*_EXCHANGES), room) for _ in range(count)
        ]
        self.control = sorted(frame.control)
        self._read = len(frame.start)
        self._wishes = torch.tensor([talk.wish for talk in self.conversations]).T.contiguous()

    def wishes(self, texts: Sequence[int]) -> Tensor:
        """See `Guide`."""
        return self._wishes[:, list(texts)]

    def take(self, texts: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        """See `Guide`."""
        for text, new in zip(texts, tokens, strict=True):
            talk = self.conversations[text]
            for token in new:
                if talk.write(token):
                    self._wishes[:, text] = torch.tensor(talk.wish)

    def is_over(self, text: int) -> bool:
        """See `Guide`."""
        return self.conversations[text].done

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Scores with what may be next: a template's token, or any that is none of a template's.

        Args:
            ids: int64 `[batch, tokens]` so far.
            scores: float `[batch, vocabulary]`; they are changed in place.
        """
        known = [token for token in self.control if token < scores.shape[1]]
        may_end, must_not, given = self._wishes.to(scores.device)
        hold_back(scores, torch.tensor(known, device=scores.device).long(), may_end, must_not)
        rows = (given >= 0).nonzero()[:, 0]
        scores[rows] = -torch.inf
        scores[rows, given[rows]] = 0.0
        return scores

    def ended(self, ids: Tensor, scores: Any = None, **_: Any) -> Tensor:
        """Take what was written since the last call; bool `[batch]`, which conversations are over."""
        texts = range(len(self.conversations))
        self.take(texts, ids[:, self._read :].tolist())
        self._read = ids.shape[1]
        return torch.tensor([talk.done for talk in self.conversations], device=ids.device)
