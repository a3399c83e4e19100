"""Random requests of `restore`: refused in words, or planned; never a traceback, never without an end."""

import pytest

hypothesis = pytest.importorskip("hypothesis")
from fuzzing import refused_or_done, texts, tries  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import small_run  # noqa: E402
import tiny  # noqa: E402
from linearard.model import ModelConfig  # noqa: E402
from linearard.restore import (  # noqa: E402
    RestoreRequest,
    parse_tokens,
    parse_window,
    plan_restoration,
)

sizes = st.one_of(
    st.integers(1, 300).map(str),
    st.integers(0, 2**40).map(str),
    st.sampled_from(
        ["128k", "1M", "4.2M", "1e9", "65", "64", "0.5k", "100_000", "1,000", "9" * 40]
    ),
    st.text(alphabet="0123456789.ekmbKMB-_, ", max_size=8),
    texts,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save_tiny_base(tmp_path_factory.mktemp("fuzz") / "base")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return small_run.write_text(tmp_path_factory.mktemp("text"), documents=4, words=400)


@given(sizes)
@tries(200)
def test_sizes(word):
    for parse in (parse_window, parse_tokens):
        found = refused_or_done(parse, word)
        assert found is None or found >= 1


@given(
    window=st.one_of(st.integers(60, 5000), st.integers(-5, 2**40)),
    tokens=st.one_of(st.none(), st.integers(2, 10**6), st.integers(-5, 2**40)),
    native=st.one_of(st.none(), st.integers(1, 70)),
    scaling=st.sampled_from(["yarn", "linear", "linear", "ntk"]),
    adapter=st.sampled_from(["auto", "direct", "lora"]),
    seed=st.one_of(st.integers(0, 9), st.integers()),
    with_text=st.booleans(),
    memory=st.sampled_from([None, 2**33, 2**37]),
)
@tries(12)
def test_plans(
    base, text, window, tokens, native, scaling, adapter, seed, with_text, memory, tmp_path_factory
):
    def plan():
        request = RestoreRequest(
            model=str(base),
            window=window,
            output=tmp_path_factory.getbasetemp() / "none",
            data=str(text) if with_text else None,
            tokens=tokens,
            native_window=native,
            scaling=scaling,
            adapter=adapter,
            seed=seed,
        )
        return plan_restoration(
            request, ModelConfig(name=str(base), device="cpu"), gpu_memory=memory
        )

    if planned := refused_or_done(plan):
        assert planned.recipe.stages and planned.planned.tokens > 0
