"""Read exported models as others do: a process of its own that knows torch, transformers and peft alone.

    python reader.py < requests

One JSON object a line comes in on standard input, one a line goes out on standard output. It is also run
by other versions of transformers, from 4.57 on, so nothing of this package is imported. What it looks at
(`observe`) the exporter looks at too, on the model that it has in memory.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

#: Names under which attention modules keep the factor on their scores.
_SCALES = ("scaling", "softmax_scale", "scale", "norm_factor", "inv_norm_factor")
#: Up to so many parameters all of them are held in float32 at once, beyond that a layer's at a time.
_WHOLE = 1_000_000_000


def observe(model: Any, probes: list[dict[str, Any]]) -> dict[str, Any]:
    """What a model is when it runs: its RoPE, its softmax scales, its logits.

    Args:
        model: a causal language model of transformers, perhaps in peft's.
        probes: keyword arguments of its forward pass, int64 tensors `[1, tokens]` on the CPU; `keep`: how
            many of the last positions count (0: all). Where the model takes no `position_ids`, probes with
            them are left out.

    Returns:
        `tables`: `(inv_freq float32, attention_scaling)` by name, as they are after the passes.
        `scales`: factors on attention scores by name. `logits`: float32 `[positions, vocabulary]` a probe,
        computed in float32 whatever the weights' precision; None for a probe that was left out, also for
        one with `keep` that the memory has no room for.
    """
    import torch

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = inspect.signature(inner.forward).parameters
    device = next(inner.parameters()).device
    logits: list[Any] = []
    inner.eval()
    with torch.no_grad(), in_float32(inner):
        for probe in probes:
            inputs = {k: v.to(device) for k, v in probe.items() if k != "keep"}
            if not set(inputs) <= set(known):
                logits.append(None)
                continue
            keep = probe.get("keep", 0)
            if keep and "logits_to_keep" in known:
                inputs["logits_to_keep"] = keep
            try:
                found = inner(use_cache=False, **inputs).logits[0]
                logits.append(found[-keep:].float().cpu())
            except torch.OutOfMemoryError:
                if not keep:
                    raise
                logits.append(None)  # a long text that there is no room for
    return {"tables": _tables(inner), "scales": _scales(inner), "logits": logits}


@contextlib.contextmanager
def in_float32(model: Any, *, whole: bool | None = None) -> Iterator[None]:
    """Compute in float32 with the weights as they are; their own precision comes back unchanged.

    Args:
        model: any module; parameters and buffers in half precision are held in float32 while they are used.
        whole: all of them at once, or a layer's at a time; default: by their number.
    """
    from torch import nn

    if whole is None:
        whole = sum(p.numel() for p in model.parameters()) <= _WHOLE
    if whole:
        kept = _widen(model.modules())
        try:
            yield
        finally:
            _restore(kept)
        return
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    layers = [layer for found in lists for layer in found]
    inside = {id(part) for layer in layers for part in layer.modules() if part is not layer}
    layers = [layer for layer in layers if id(layer) not in inside]
    inside |= {id(layer) for layer in layers}
    units = [(layer, list(layer.modules())) for layer in layers]
    units += [(part, [part]) for part in model.modules() if id(part) not in inside]
    handles, open_units = [], {}
    for unit, parts in units:

        def begin(module: Any, args: Any, parts: list[Any] = parts) -> None:
            open_units[id(module)] = _widen(parts)

        def end(module: Any, args: Any, output: Any) -> None:
            _restore(open_units.pop(id(module)))

        handles += [
            unit.register_forward_pre_hook(begin),
            unit.register_forward_hook(end, always_call=True),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _widen(modules: Any) -> list[tuple[Any, Any]]:
    import torch

    kept: dict[int, tuple[Any, Any]] = {}
    for module in modules:
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if id(tensor) not in kept and tensor.dtype in (torch.bfloat16, torch.float16):
                kept[id(tensor)] = (tensor, tensor.data)
                tensor.data = tensor.data.float()
    return list(kept.values())


def _restore(kept: list[tuple[Any, Any]]) -> None:
    for tensor, data in kept:
        tensor.data = data


def _tables(model: Any) -> dict[str, tuple[Any, float]]:
    found = {}
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name.endswith("inv_freq") and "original" not in name and "long_" not in name:
                prefix = name.removesuffix("inv_freq")
                scaling = getattr(module, prefix + "attention_scaling", 1.0)
                found[f"{path}.{name}"] = (buffer.detach().float().cpu().clone(), float(scaling))
    return found


def _scales(model: Any) -> dict[str, float]:
    found = {}
    for path, module in model.named_modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            for name in _SCALES:
                value = getattr(module, name, None)
                if isinstance(value, int | float) and not isinstance(value, bool):
                    found[f"{path}.{name}"] = float(value)
    return found


def load(request: dict[str, Any]) -> Any:
    """A model from its folder: complete, or an adapter over the base model that its files name.

    Args:
        request: `folder`; `form`: merged or adapter; `device`; for an adapter also `base_dtype`;
            `trust_remote_code`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = request["folder"]
    trust = {"trust_remote_code": True} if request.get("trust_remote_code") else {}
    if request["form"] == "merged":
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **trust)
    else:
        from peft import PeftConfig, PeftModel

        adapter = PeftConfig.from_pretrained(folder)
        config = AutoConfig.from_pretrained(folder, **trust)
        revision = {"revision": adapter.revision} if adapter.revision else {}
        base = AutoModelForCausalLM.from_pretrained(
            adapter.base_model_name_or_path,
            config=config,
            dtype=getattr(torch, request["base_dtype"]),
            **revision,
            **trust,
        )
        model = PeftModel.from_pretrained(base, folder)
    return model.to(request["device"])


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {"transformers": transformers.__version__}
        try:
            found = observe(load(request), torch.load(request["probes"]))
            torch.save(found, request["out"])
        except Exception as error:  # whatever a library raises is the answer
            answer["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), file=answers)
    os._exit(0)  # what libraries do at their end takes longer than an export


if __name__ == "__main__":
    main()
