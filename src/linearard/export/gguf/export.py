"""A restored model as one GGUF, run by llama.cpp before it is called done, where llama.cpp is installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linearard.errors import CheckpointError, RecipeError
from linearard.export.gguf.formats import precision_of, resolve_type
from linearard.export.gguf.llamacpp import llama_cpp_logits, llama_cpp_version
from linearard.export.gguf.options import GgufOptions
from linearard.export.gguf.source import about_base
from linearard.export.gguf.write import write_gguf
from linearard.export.merging import Price, Probes, Reference, base_dtype, look, merge, report
from linearard.export.probes import passages
from linearard.model import ModelConfig, RestorableModel, display_name

#: Relative error of logits that rounding may explain, by the type of the file; a wrong RoPE gives 3e-1 and
#: more. Beside it stands what the arithmetic of the model in memory explains.
_TOLERANCE = {"f32": 1e-3, "f16": 1e-2, "bf16": 1e-1, "q8_0": 1e-1}
_OWN_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_TOKENS = 96


def export_gguf(
    restorable: RestorableModel,
    folder: Path,
    options: GgufOptions,
    *,
    window: int | None = None,
    merge_dtype: str = "auto",
) -> dict[str, Any]:
    """Write a GGUF and a Modelfile for Ollama, and compare llama.cpp's logits with the model's.

    Args:
        restorable: the model with its trained weights; a merge uses it up.
        folder: exists.
        options: see `GgufOptions`.
        window: tokens that the file says it reads; the target window where nothing is given.
        merge_dtype: see `merging.merge`; the precision is the file's, and 8 bits are made of float32.

    Returns:
        `file`; `checked_with`; `merge` and `merges_tried`; and with llama.cpp installed
        `relative_error` of its logits and their `top1_agreement` on eight texts.

    Raises:
        ModelError, RopeError, RecipeError: see `check_gguf`.
        CheckpointError: llama.cpp gives other logits.
    """
    inputs, texts = _inputs(restorable), passages(restorable)
    expected, seen = _logits(restorable.model, inputs), look(restorable, texts)
    source = options.with_source(ModelConfig(name=restorable.name or "unnamed")).tokenizer
    dtype = base_dtype(restorable)
    kind = resolve_type(options.type, dtype)
    window = window or restorable.rope.target_window
    name = f"{_short_name(restorable.name)}-{_tokens(window)}-{kind}"
    path = folder / f"{name}.gguf"
    merged, prices = _merge(restorable, merge_dtype, texts, seen, kind)
    write_gguf(
        merged,
        restorable.rope,
        path,
        kind,
        name=name,
        window=window,
        tokenizer=restorable.tokenizer,
        tokenizer_source=source,
        about=about_base(source),
    )
    (folder / "Modelfile").write_text(f"FROM ./{path.name}\nPARAMETER num_ctx {window}\n")
    found = {"file": path.name, "window": window} | report(prices)
    version = llama_cpp_version()
    if version is None:
        return found | {
            "checked_with": "the file's table alone (llama-cpp-python is not installed)"
        }
    got = [torch.cat(list(llama_cpp_logits(path, ids[0].tolist()))) for ids in inputs]
    tolerance = max(_TOLERANCE[kind], _OWN_TOLERANCE[dtype])
    return found | {
        "checked_with": f"llama-cpp-python {version}",
        **_compare(expected, got, tolerance, path),
    }


def _merge(
    restorable: RestorableModel, asked: str, texts: Probes, seen: Reference, kind: str
) -> tuple[Any, list[Price]]:
    """The merged model, its trained weights in the file's precision or, over a narrower base, in float32."""
    precision = precision_of(kind)
    narrowed = base_dtype(restorable) == torch.float32 != precision
    try:
        # Nothing of a base in float32 tells the trained weights from those that the file shall round.
        return merge(restorable, "model" if narrowed else asked, texts, seen, precision)
    except RecipeError as error:
        raise error.reworded(fix="Give --gguf-type f32.") from error


def _inputs(restorable: RestorableModel) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = restorable.config.vocab_size
    if restorable.tokenizer is not None:
        size = min(size, len(restorable.tokenizer))
    length = min(_TOKENS, restorable.rope.target_window)
    return [torch.randint(size, (1, length), generator=generator) for _ in range(8)]


@torch.no_grad()
def _logits(model: Any, inputs: list[Tensor]) -> list[Tensor]:
    model.eval()
    device = next(model.parameters()).device
    runs = (model(input_ids=ids.to(device), use_cache=False) for ids in inputs)
    return [run.logits[0].float().cpu() for run in runs]


def _compare(
    expected: list[Tensor], got: list[Tensor], tolerance: float, path: Path
) -> dict[str, Any]:
    pairs = list(zip(expected, got, strict=True))
    error = max(float((g - e).norm() / e.norm()) for e, g in pairs)
    if not error <= tolerance:
        raise CheckpointError(
            expected=f"llama.cpp to give the same logits (relative error up to {tolerance:g})",
            got=f"{error:.3g}",
            fix="Nothing was exported; report this with your recipe.",
        )
    same = torch.cat([e.argmax(-1) == g.argmax(-1) for e, g in pairs])
    return {"relative_error": error, "top1_agreement": float(same.float().mean())}


def _short_name(name: str) -> str:
    last = display_name(name).rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9.]+", "-", last).strip("-") or "model"


def _tokens(window: int) -> str:
    return f"{window // 1024}k" if window % 1024 == 0 else str(window)
