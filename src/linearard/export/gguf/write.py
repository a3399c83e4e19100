"""Write a merged model as one GGUF, and read back what it says about RoPE."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linearard.errors import CheckpointError
from linearard.export.gguf.families import family_of
from linearard.export.gguf.formats import file_type, packed, resolve_type, tensor_type
from linearard.export.gguf.keys import add_keys
from linearard.export.gguf.read_back import gguf_rotation
from linearard.export.gguf.rotation import rotation_of
from linearard.export.gguf.tensors import named_tensors
from linearard.export.gguf.tokenizer import add_tokenizer
from linearard.rope import RopeTable, RopeViews
from linearard.storage import replacing


def write_gguf(
    model: Any,
    rope: RopeViews,
    path: Path,
    gguf_type: str = "auto",
    *,
    name: str,
    window: int | None = None,
    tokenizer: Any = None,
    tokenizer_source: Path | None = None,
    about: dict[str, Any] | None = None,
) -> None:
    """Write a merged model, its stretched RoPE and its tokenizer.

    Weights are converted and written one at a time. Those that were merged in float32 into a model of half
    precision stay in float32 in a file of half precision.

    Args:
        model: of `transformers`, with the trained weights in place.
        rope: its views; the stretched one is written.
        path: the file; it appears under this name when it is whole.
        gguf_type: one of `GGUF_TYPES`.
        name: of the model, for people.
        window: tokens that the file says it reads; the target window where nothing is given.
        tokenizer: of `transformers`; not needed beside a `tokenizer_source`.
        tokenizer_source: a GGUF of the base model, whose tokenizer and chat template are copied.
        about: more keys of the section `general`, such as `license`.

    Raises:
        ModelError, RopeError, RecipeError: see `check_gguf`.
        CheckpointError: what was written says another rotation; the file is removed.
    """
    import gguf

    config = model.config.get_text_config()
    family = family_of(config, rope.target_window)
    tables = rope.tables("stretched")
    table = tables.get("full_attention", tables.get(""))
    rotation = rotation_of(table, rope.scaling, family)
    rotary_dim = 2 * table.inv_freq.numel()
    dtype = model.get_output_embeddings().weight.dtype
    kind = resolve_type(gguf_type, dtype)

    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[family.arch]])
    writer.add_type("model")
    writer.add_name(name)
    for key, value in (about or {}).items():
        getattr(writer, f"add_{key}")(value)
    writer.add_file_type(file_type(kind))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_keys(writer, config, family, rotation, window or rope.target_window, rotary_dim)
    add_tokenizer(writer, tokenizer_source, tokenizer, config.vocab_size)
    divisors = [] if rotation.divisors is None else [torch.from_numpy(rotation.divisors)]

    def everything() -> Iterator[tuple[str, Tensor, Any]]:
        for part in family.table:
            yield from ((part, x, tensor_type(tuple(x.shape), kind)) for x in divisors)
        for new, x, own in named_tensors(model, family, rotation.query_scale, rotary_dim):
            whole = own == torch.float32 != dtype
            yield new, x, tensor_type(tuple(x.shape), kind, whole=whole)

    for new, tensor, of in everything():  # a first round for names and sizes, which stand in front
        size = math.prod(gguf.quant_shape_to_byte_shape(tensor.shape, of))
        writer.add_tensor_info(new, tensor.shape, np.dtype(np.float32), size, raw_dtype=of)
    with replacing(path) as partial:
        try:
            writer.write_header_to_file(partial)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for new, tensor, of in everything():
                writer.write_tensor_data(packed(tensor, of, new))
        finally:
            writer.close()
        _check(partial, table)


def _check(path: Path, table: RopeTable) -> None:
    frequencies = gguf_rotation(path).frequencies
    wanted = table.inv_freq.double()
    if not torch.allclose(frequencies, wanted, rtol=1e-5, atol=0):
        raise CheckpointError(
            expected=f"a GGUF with the trained table, first {wanted[0]:.6g}, last {wanted[-1]:.6g}",
            got=f"first {frequencies[0]:.6g}, last {frequencies[-1]:.6g}",
            fix="Report this with your recipe; nothing was left on disk.",
        )
