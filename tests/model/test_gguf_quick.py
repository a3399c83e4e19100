"""The quick reader against the package's own, on files that the package wrote."""

import gguf
import numpy as np
import pytest

from linearard.model.gguf_quick import quick_gguf


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "numbers.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Zwölf Ruderer")
    writer.add_context_length(77)
    writer.add_array("tokenizer.ggml.tokens", ["", "a", "ä€😀", " " * 300, "\n"])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.25, 3.0])
    writer.add_array("tokenizer.ggml.token_type", [1, 3, -6])
    writer.add_array("x.flags", [True, False])
    writer.add_array("x.one", ["single"])
    writer.add_tensor("output.weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("rope_freqs.weight", np.arange(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_fields_and_tensors_are_those_of_the_package(path):
    slow = gguf.GGUFReader(path)
    with quick_gguf():
        quick = gguf.GGUFReader(path)
        assert type(quick) is not type(slow)
    assert type(gguf.GGUFReader(path)) is type(slow)
    assert list(quick.fields) == list(slow.fields)
    for name, expected in slow.fields.items():
        got = quick.fields[name]
        assert (got.offset, got.types, list(got.data)) == (
            expected.offset,
            expected.types,
            list(expected.data),
        )
        assert [(p.dtype, p.tobytes()) for p in got.parts] == [
            (p.dtype, p.tobytes()) for p in expected.parts
        ]
        assert got.contents() == expected.contents()
    for got, expected in zip(quick.tensors, slow.tensors, strict=True):
        assert (got.name, got.data_offset) == (expected.name, expected.data_offset)
        assert np.array_equal(got.data, expected.data)


@pytest.mark.parametrize("kept", [30, 90, 160, 400])
def test_a_file_that_ends_too_early_is_refused(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with quick_gguf(), pytest.raises(Exception):  # noqa: B017
        gguf.GGUFReader(path)
