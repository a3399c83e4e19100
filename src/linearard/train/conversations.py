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
        self._allowed: Tensor | None = None  # bool [4, vocabulary]

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Scores with what may be next: a template's token, or any that is none of a template's.

        Args:
            ids: int64 `[batch, tokens]` so far.
            scores: float `[batch, vocabulary]`; they are changed in place.
        """
        if self._allowed is None:
            self._allowed = torch.stack(self._masks(scores))
        kinds = [2 * talk.speaker + talk.must_begin for talk in self.conversations]
        scores.masked_fill_(~self._allowed[kinds], -torch.inf)
        fixed = [
            (row, talk.next) for row, talk in enumerate(self.conversations) if talk.next is not None
        ]
        if fixed:
            rows, tokens = map(list, zip(*fixed, strict=True))
            scores[rows] = -torch.inf
            scores[rows, tokens] = 0.0
        return scores

    def ended(self, ids: Tensor, scores: Any = None, **_: Any) -> Tensor:
        """Take what was written since the last call; bool `[batch]`, which conversations are over."""
        for talk, row in zip(self.conversations, ids[:, self._read :].tolist(), strict=True):
            for token in row:
                talk.write(token)
        self._read = ids.shape[1]
        return torch.tensor([talk.done for talk in self.conversations], device=ids.device)

    def _masks(self, scores: Tensor) -> list[Tensor]:
        """What may be said: within a turn of the user, at its beginning; the same of the assistant."""
        masks = []
        for turn in (0, 1):
            cue = self._frame.separator(turn).cue
            allowed = torch.ones(scores.shape[1], dtype=torch.bool, device=scores.device)
            allowed[[t for t in self._frame.control if t < len(allowed)]] = False
            first = allowed.clone()
            if len(cue) == 1:
                allowed[cue[0]], first[cue[0]] = True, False
            masks += [allowed, first]
        return masks
