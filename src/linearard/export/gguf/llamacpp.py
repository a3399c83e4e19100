"""Logits of a GGUF from llama.cpp itself, where its Python package is installed."""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linearard.errors import CheckpointError

_STEP = 512  # tokens a call, and logits held at a time


def llama_cpp_version() -> str | None:
    """Version of the installed `llama-cpp-python`, None where there is none."""
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    import llama_cpp

    return str(llama_cpp.__version__)


def llama_cpp_logits(path: str | Path, ids: list[int], *, threads: int = 0) -> Iterator[Tensor]:
    """Run a GGUF as its keys say, with keys and values cached in float32.

    Args:
        path: the file.
        ids: tokens, no more than the model's window.
        threads: of the CPU; 0 takes torch's number.

    Yields:
        Logits `[at most 512, vocabulary]`, float32, of the tokens in turn.

    Raises:
        CheckpointError: llama.cpp does not take the file.
    """
    import llama_cpp

    llama_cpp.llama_backend_init()
    said = _listen()
    options = llama_cpp.llama_model_default_params()
    options.n_gpu_layers = 0
    # Weights packed anew for the processor's matrix units end the process where a virtual machine lists the
    # units and does not let programs use them.
    options.use_extra_bufts = False
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
    if not model:
        raise CheckpointError(
            expected=f"a GGUF that llama.cpp can load at {path}",
            got="; ".join(line.strip() for line in said if "error" in line) or "no model",
            fix="Nothing was exported; report this with your recipe.",
        )
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = -(-len(ids) // 256) * 256
    settings.n_batch = settings.n_ubatch = _STEP
    settings.n_threads = settings.n_threads_batch = threads or torch.get_num_threads()
    settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
    settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(model, settings)
    rows = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(_STEP, 0, 1)
    try:
        for start in range(0, len(ids), _STEP):
            part = ids[start : start + _STEP]
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, start + i, 1
                batch.seq_id[i][0], batch.logits[i] = 0, True
            if llama_cpp.llama_decode(context, batch):
                raise RuntimeError(f"llama.cpp fails at token {start}")
            found = llama_cpp.llama_get_logits(context)
            size = rows * len(part)
            flat = torch.frombuffer(
                (llama_cpp.ctypes.c_float * size).from_address(
                    llama_cpp.ctypes.addressof(found.contents)
                ),
                dtype=torch.float32,
            )
            yield flat.view(len(part), rows).clone()
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def _listen() -> deque[str]:
    """Keep the last lines that llama.cpp would print."""
    import llama_cpp

    _said.clear()
    if not _callbacks:
        _callbacks.append(
            llama_cpp.llama_log_callback(
                lambda _, line, __: _said.append(line.decode("utf8", "replace"))
            )
        )
        llama_cpp.llama_log_set(_callbacks[0], None)
    return _said


_said: deque[str] = deque(maxlen=20)
_callbacks: list[Any] = []  # llama.cpp keeps a pointer to it
