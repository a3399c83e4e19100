"""What the fuzz tests share: values nobody means, how many to try, and what may come of them.

By default they take about a minute together. `LINEARARD_FUZZ=100` tries a hundred times as many, other ones
each time.
"""

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from linearard.errors import UserError

_FACTOR = int(os.environ.get("LINEARARD_FUZZ", "0"))


def tries(count: int) -> settings:
    """So many examples, the same ones in every run; more and others where the environment asks."""
    return settings(
        max_examples=count * max(_FACTOR, 1),
        derandomize=not _FACTOR,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


numbers = st.one_of(
    st.sampled_from(
        [0, 1, -1, 2, 3, 4, 48, 64, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e-30, 1e30, 1e308]
    ),
    st.integers(),
    st.floats(),
)
texts = st.one_of(
    st.sampled_from(
        ["", " ", "no", "null", "~", "/", "..", "*", "self", "pydoc", "a" * 300, "\0", "\ud83d"]
    ),
    st.text(max_size=20),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(texts, scalars), inner, max_size=4)
    ),
    max_leaves=8,
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def damaged(draw: Any, whole: bytes, *, within: int | None = None) -> bytes:
    """Bytes of a file with a few changed, taken out or put in, or cut short.

    Args:
        draw: of Hypothesis.
        whole: the file.
        within: only so many bytes at its beginning are changed.
    """
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(data), within or len(data)) - 1)) if data else 0
        kind = draw(st.sampled_from(["flip", "set", "cut", "out", "in"]))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and data:
            fill = draw(st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x7f" * 4, b"[", b"{", b'"']))
            data[at : at + len(fill)] = fill
        elif kind == "cut":
            del data[at:]
        elif kind == "out":
            del data[at : at + draw(st.integers(1, 16))]
        else:
            data[at:at] = draw(st.binary(max_size=16))
    return bytes(data)


def refused_or_done(call: Any, *arguments: Any) -> Any:
    """What a call returns, or None where it was refused in words; anything else fails the test."""
    try:
        return call(*arguments)
    except UserError as error:
        message = str(error)
        assert error.expected and error.got and error.fix and len(message) < 5000
        assert "\n" not in message, message
        message.encode()  # printable
        return None
