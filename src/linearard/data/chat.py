"""Conversations as documents: records of messages, and the text that a chat template makes of them."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

from linearard.errors import DataError

#: Keys under which records of conversations are kept.
COLUMNS = ("messages", "conversations")
#: Names of speakers in records of the kind `{"from": ..., "value": ...}`.
_SPEAKERS = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}
# Some templates write the date; a text that depends on the day could not be found again.
_DATE = datetime(2024, 7, 26)
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


class Chat(str):
    """A conversation that is still to be rendered; as text, its messages in JSON.

    Attributes:
        place: where it was read, for messages.
    """

    place: str

    def __new__(cls, messages: list[dict[str, str]], place: str) -> Chat:
        """Of messages as a chat template takes them, read at a place."""
        chat = super().__new__(cls, json.dumps(messages, ensure_ascii=False))
        chat.place = place
        return chat


def read_chat(turns: Any, place: str) -> Chat:
    """The conversation of a record: a list of `{"role", "content"}` or of `{"from", "value"}`.

    Raises:
        DataError: it is no such list.
    """
    messages = []
    for turn in turns if isinstance(turns, list) else [turns]:
        role, content = None, None
        if isinstance(turn, dict):
            role = turn.get("role", turn.get("from"))
            content = turn.get("content", turn.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise DataError(
                expected='messages of {"role", "content"} or {"from", "value"}, both texts, at '
                + place,
                value=turn,
                fix="Correct the record, or set `text_column` to a key that holds text.",
            )
        messages.append({"role": _SPEAKERS.get(role, role), "content": content})
    return Chat(messages, place)


def render_chat(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """What the tokenizer's chat template writes for these messages, on one fixed day.

    Raises:
        Exception: what the template raises, which is a program.
    """
    template = _TODAY.sub(
        lambda found: repr(_DATE.strftime(found[2])), tokenizer.get_chat_template()
    )
    return tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=False
    )


def as_text(tokenizer: Any, document: str, beginning: str) -> str:
    """A document as it is tokenised; of a conversation what the template writes behind `beginning`.

    Args:
        tokenizer: whose chat template is used.
        document: a text or a `Chat`.
        beginning: what stands before every text anyhow, as text.

    Raises:
        DataError: there is no template, or it refuses the conversation.
    """
    if not isinstance(document, Chat):
        return document
    try:
        text = render_chat(tokenizer, json.loads(document))
    except Exception as error:
        raise DataError(
            expected=f"a chat template that takes the conversation at {document.place}",
            got=" ".join(str(error).split())[:300] or type(error).__name__,
            fix="Correct the record, give the tokenizer a chat template, or set `text_column` to a key that "
            "holds text.",
        ) from error
    return text.removeprefix(beginning) if beginning else text
