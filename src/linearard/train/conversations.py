"""Conversations of which a model writes both sides, in the frame of its chat template."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from linearard.train.chat_template import ChatFrame

_EXCHANGES = (1, 3)  # of a conversation, from and to
_TURN_TOKENS = 640  # of a turn that does not end by itself before


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
    def must_begin(self) -> bool:
        """Whether the next token is the first of a turn, which must not end there."""
        return not self._ahead and not self.turns[-1]

    @property
    def speaker(self) -> int:
        """0 where the user has the turn, 1 where the assistant has it."""
        return (len(self.turns) - 1) % 2

    def write(self, token: int) -> None:
        """Take the next token."""
        if self.done:
            return
        self._room -= 1
        if self._ahead:
            self._ahead.pop(0)
        else:
            self._speak(token)
        if not self._room or len(self.turns[-1]) == _TURN_TOKENS:
            self.done = True

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
    """Steers `generate` through the frames of a batch of conversations.

    It is called as a logits processor and, by `ended`, as a criterion to stop by.

    Args:
        frame: what stands around the turns.
        count: conversations of the batch.
        room: most tokens of each, behind `frame.start`.
        chance: draws the number of exchanges.
    """

    def __init__(self, frame: ChatFrame, count: int, room: int, chance: random.Random) -> None:
        self.conversations = [
            Conversation(frame, chance.randint(*_EXCHANGES), room) for _ in range(count)
        ]
        self._frame, self._read = frame, len(frame.start)
        cues = [frame.separator(turn).cue for turn in (0, 1)]
        #: The token that ends a turn of the user, of the assistant; None where it takes several.
        self._cues = [cue[0] if len(cue) == 1 else None for cue in cues]
        self._control: Tensor | None = None  # int64, ids of the template that no turn may hold

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Scores with what may be next: a template's token, or any that is none of a template's.

        Of a large vocabulary only the columns of the template's tokens are touched: a mask of all of it
        for every conversation takes longer than the model does.

        Args:
            ids: int64 `[batch, tokens]` so far.
            scores: float `[batch, vocabulary]`; they are changed in place.
        """
        if self._control is None:
            known = [token for token in self._frame.control if token < scores.shape[1]]
            self._control = torch.tensor(sorted(known), dtype=torch.long, device=scores.device)
        ends, begins, fixed = [], [], []
        for row, talk in enumerate(self.conversations):
            if talk.done:
                continue
            if talk.next is not None:
                fixed.append((row, talk.next))
            elif (cue := self._cues[talk.speaker]) is not None:
                (begins if talk.must_begin else ends).append((row, cue))
        may_end, must_go_on, given = map(_places, (ends, begins, fixed))
        held = scores[may_end]
        scores[:, self._control] = -torch.inf
        scores[may_end] = held
        scores[must_go_on] = -torch.inf
        scores[given[0]] = -torch.inf
        scores[given] = 0.0
        return scores

    def ended(self, ids: Tensor, scores: Any = None, **_: Any) -> Tensor:
        """Take what was written since the last call; bool `[batch]`, which conversations are over."""
        for talk, row in zip(self.conversations, ids[:, self._read :].tolist(), strict=True):
            if not talk.done:
                for token in row:
                    talk.write(token)
        self._read = ids.shape[1]
        return torch.tensor([talk.done for talk in self.conversations], device=ids.device)


def _places(pairs: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Rows and columns, as a tensor is indexed by them."""
    return [row for row, _ in pairs], [column for _, column in pairs]
