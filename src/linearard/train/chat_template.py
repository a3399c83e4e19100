"""What a tokenizer's chat template writes around the turns of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from linearard.data import beginning
from linearard.data.chat import render_chat
from linearard.errors import DataError

_MOST = 3  # exchanges of a conversation; the template is tried with as many
#: What stands for a turn's text: nothing that a template writes itself, and one word, so that none trims it.
_TURNS = [f"zq{number}turnqz" for number in range(2 * _MOST)]


@dataclass(frozen=True)
class Separator:
    """What stands between two turns.

    Attributes:
        text: as the template writes it.
        cue: the ids by which the writer of a turn says that it has ended: those of the first special token
            of the text, or of all of it where it has none.
        rest: the ids that follow the cue.
    """

    text: str
    cue: tuple[int, ...]
    rest: tuple[int, ...]


@dataclass(frozen=True)
class ChatFrame:
    """All that stands around the turns of a conversation; the user has the first.

    Attributes:
        start: ids before the first turn, with those that the tokenizer puts before every text.
        head, tail: text before the first turn and after the last, without what the tokenizer puts before a
            text and without the end-of-text token that will join the conversation to the next.
        to_assistant, to_user: what follows a turn of the user, and of the assistant.
        control: ids of special tokens, which no turn holds.
    """

    start: tuple[int, ...]
    head: str
    tail: str
    to_assistant: Separator
    to_user: Separator
    control: frozenset[int]

    def separator(self, turn: int) -> Separator:
        """What follows the turn of this number; those of even numbers are the user's."""
        return self.to_user if turn % 2 else self.to_assistant

    def text(self, turns: Sequence[str]) -> str:
        """A conversation as the template writes it."""
        parts = [self.head]
        for number, turn in enumerate(turns):
            parts += [turn, self.separator(number).text]
        return "".join([*parts[:-1], self.tail])


def chat_frame(tokenizer: Any) -> ChatFrame:
    """Read the chat template of a tokenizer by giving it turns of one word.

    Nothing is asked of the template but that it writes the same around every exchange of user and assistant.

    Args:
        tokenizer: a fast tokenizer of `transformers`.

    Raises:
        DataError: there is no template, it takes no plain exchanges, or it writes them differently by
            their place, or without anything that ends a turn.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise _unusable("none")
    head, *between, tail = _around(tokenizer, _TURNS)
    # What stands before the last answer may differ: some templates leave thoughts out of earlier ones.
    to_assistant, to_user = between[0], between[1]
    if between[2] != to_assistant or between[3] != to_user:
        raise _unusable(f"one that writes {between[:4]} between turns")
    if (alone := _around(tokenizer, _TURNS[:2])[0]) != head:
        raise _unusable(f"one that begins with {alone!r} or with {head!r}")
    if not (to_assistant.strip() and to_user.strip()):
        raise _unusable("one that writes nothing between turns")
    control = frozenset(
        token for token, added in tokenizer.added_tokens_decoder.items() if added.special
    )
    begin = beginning(tokenizer)
    start = _ids(tokenizer, head.rstrip(" "))
    if start[: len(begin)] == begin:
        head = head.removeprefix(tokenizer.decode(begin)) if begin else head
    else:
        start = [*begin, *start]
    if not start:
        raise _unusable("one that writes nothing before the first turn, nor does the tokenizer")
    end = tokenizer.eos_token
    return ChatFrame(
        start=tuple(start),
        head=head,
        tail="" if end and tail.startswith(end) else tail,
        to_assistant=_separator(tokenizer, to_assistant, control),
        to_user=_separator(tokenizer, to_user, control),
        control=control,
    )


def _around(tokenizer: Any, turns: Sequence[str]) -> list[str]:
    """What the template writes before, between and after turns: one text more than there are turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]
    try:
        text = render_chat(tokenizer, messages)
    except Exception as error:  # a template is a program, and raises what it likes
        raise _unusable(f"one that refuses them: {' '.join(str(error).split())}") from error
    parts = []
    for turn in turns:
        before, found, text = text.partition(turn)
        if not found or turn in text:
            raise _unusable("one that leaves turns out, repeats them or changes their order")
        parts.append(before)
    return [*parts, text]


def _separator(tokenizer: Any, text: str, control: frozenset[int]) -> Separator:
    # The model begins its turn with the space that a template may write there.
    ids = _behind_text(tokenizer, text.rstrip(" "))
    place = next((place for place, token in enumerate(ids) if token in control), None)
    if place is None:
        cue = _ids(tokenizer, text.strip())
        return Separator(text, tuple(cue), ())
    return Separator(text, (ids[place],), tuple(ids[place + 1 :]))


def _behind_text(tokenizer: Any, text: str) -> list[int]:
    """Ids of `text` behind other text: some tokenizers put a space of their own before a text."""
    before, both = _ids(tokenizer, "."), _ids(tokenizer, f".{text}")
    return both[len(before) :] if both[: len(before)] == before else _ids(tokenizer, text)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _unusable(got: str) -> DataError:
    return DataError(
        expected="a tokenizer whose chat template takes turns of user and assistant, for data.self_chat",
        got=got,
        fix="Take a model of conversations, or leave `self_chat` out.",
    )
