"""Random numbers of tokens as `restore` reads them: refused in words, or a number."""

import pytest

hypothesis = pytest.importorskip("hypothesis")
from fuzzing import refused_or_done, texts, tries  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from linearard.restore import parse_tokens, parse_window  # noqa: E402

sizes = st.one_of(
    st.integers(1, 300).map(str),
    st.integers(0, 2**40).map(str),
    st.sampled_from(
        ["128k", "1M", "4.2M", "1e9", "65", "64", "0.5k", "100_000", "1,000", "9" * 40]
    ),
    st.text(alphabet="0123456789.ekmbKMB-_, ", max_size=8),
    texts,
)


@given(sizes)
@tries(200)
def test_sizes(word):
    for parse in (parse_window, parse_tokens):
        found = refused_or_done(parse, word)
        assert found is None or found >= 1
