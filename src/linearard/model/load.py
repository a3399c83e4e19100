"""Load a causal language model and its tokenizer: hub id, local folder, GGUF file, or installed package."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from linearard.errors import DeviceError, ModelError
from linearard.fields import Beside, Rule, check_fields, described, flag, one_of, text
from linearard.model.foreign import (
    check_configuration,
    check_folder,
    check_templates,
    packaged_gguf,
    unreadable,
    unusable,
)
from linearard.model.gguf_file import GgufFile, open_gguf
from linearard.model.gguf_quick import quick_gguf
from linearard.model.gguf_rope import apply_rope
from linearard.model.gguf_tokenizer import settle_tokenizer
from linearard.model.packed import check_packing, keep_layout, packing
from linearard.model.rows import add_rows
from linearard.processes import local_process_index

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_INSIDE = Rule(
    lambda v: text().right(v) and v[0] not in "/~\\" and ".." not in Path(v).parts,
    "the path of a file inside the repository or folder",
)


@dataclass
class ModelConfig:
    """Which model, in which precision, on which device."""

    name: str = described(
        "",
        "Hub id, local folder, path of a .gguf file, or `package:NAME` for the GGUF inside an installed "
        "Python package.",
        text("a hub id, a folder, a .gguf file or package:NAME"),
    )
    revision: str | None = described(
        None, "Hub revision (branch, tag or commit).", text().or_null()
    )
    gguf_file: str | None = described(
        None, "GGUF file inside the hub repository or folder.", _INSIDE.or_null()
    )
    dtype: str = described(
        "auto",
        "bfloat16, float16, float32, or auto: bfloat16 where the hardware computes it natively, "
        "float32 elsewhere.",
        one_of(("auto", *_DTYPES)),
    )
    load_in_4bit: bool = described(
        False,
        "Base weights in 4 bits (NF4, by the package bitsandbytes), the same for teacher and student: a "
        "quarter of their memory, for slower steps. For LoRA; not from a GGUF.",
        flag(),
        Beside(
            lambda c: not (c.load_in_4bit and (c.gguf_file or names_gguf(c.name))),
            "false with a GGUF, whose weights were quantised in another way",
            "Leave model.load_in_4bit out, or save the model as a folder first.",
        ),
    )
    resize_embeddings: bool = described(
        False,
        "Where the tokenizer has more tokens than the model has rows: add rows, each the mean of the others.",
        flag(),
    )
    device: str = described("auto", "cuda, cuda:N, cpu, or auto: CUDA if there is one.", text())
    attn_implementation: str | None = described(
        None,
        "Attention of transformers to wrap; null lets transformers choose (sdpa). Kernels of the hub are "
        "code: on the command line alone.",
        text().or_null(),
    )
    sharded: bool = described(
        False,
        "Divide the layers among the processes of a launcher (FSDP2): each holds its share of weights, "
        "gradients and optimizer, and gathers a layer when it runs. One process holds all.",
        flag(),
    )
    trust_remote_code: bool = described(
        False,
        "Run model code from the hub repository or folder; on the command line alone, no file allows it.",
        flag(),
    )

    def __post_init__(self) -> None:
        check_fields(self, "model")


def names_gguf(name: str) -> bool:
    """Whether `model.name` is that of a GGUF file, or of a package with one."""
    return name.startswith("package:") or name.endswith(".gguf")


def gguf_path(config: ModelConfig) -> Path | None:
    """The GGUF file that a model is read from, None where it is none.

    Raises:
        ModelError: the file or package named is not there.
    """
    if not (config.gguf_file or names_gguf(config.name)):
        return None
    folder, file = _locate(config)
    if Path(folder).is_dir():
        return Path(folder) / str(file)
    from transformers.utils import cached_file

    return Path(str(cached_file(folder, str(file), revision=config.revision or "main")))


def resolve_device(name: str) -> torch.device:
    """The device a recipe asks for; under a distributed launcher, this process's own GPU.

    Raises:
        DeviceError: CUDA was asked for where there is none, or the name is unknown.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if (
        device is None
        or device.type not in ("cuda", "cpu")
        or (device.type == "cpu" and device.index)
    ):
        raise DeviceError(
            expected="a device such as cuda, cuda:1 or cpu",
            value=name,
            fix="Set model.device.",
        )
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DeviceError(
                expected=f"a CUDA device {name!r}",
                got=f"a machine with {count} usable CUDA devices",
                fix="Set model.device to cpu or auto, or install a CUDA build of PyTorch.",
            )
        if device.index is None:
            device = torch.device("cuda", min(local_process_index(), count - 1))
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of the base weights and of autocast.

    Raises:
        DeviceError: half precision was asked for where the backend cannot train in it.
    """
    bf16 = _native_bfloat16(device)
    if name == "auto":
        return torch.bfloat16 if bf16 else torch.float32
    dtype = _DTYPES[name]
    if dtype == torch.float16 and device.type == "cpu":
        raise DeviceError(
            expected="bfloat16 or float32 on a CPU",
            got="float16, which PyTorch's CPU backend cannot train in",
            fix="Set model.dtype to auto, bfloat16 or float32.",
        )
    if dtype == torch.bfloat16 and device.type == "cuda" and not bf16:
        raise DeviceError(
            expected="a GPU with bfloat16 (compute capability 8.0 or newer)",
            got=torch.cuda.get_device_name(device),
            fix="Set model.dtype to float16 or float32.",
        )
    return dtype


def _native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Without these instructions bfloat16 is emulated and slower than float32.
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, flag, lambda: False)() for flag in flags)


def load_model(config: ModelConfig, tokenizer: Any = None) -> tuple[Any, Any]:
    """Load a model (evaluation mode, on its device, in its precision) and its tokenizer.

    GGUF weights are unpacked to dense ones, and the mark that forbids saving them is removed.

    Args:
        config: which model.
        tokenizer: its tokenizer if it was loaded before; reading one from a GGUF takes seconds.

    Raises:
        ModelError: it cannot be found or read, lacks weights, or is no causal language model.
        RecipeError: 4 bits were asked for without bitsandbytes, or with an old one.
        DeviceError: see `resolve_device`, `resolve_dtype`.
    """
    from transformers import AutoModelForCausalLM

    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    kwargs: dict[str, Any] = {"dtype": dtype}
    if config.attn_implementation:
        kwargs["attn_implementation"] = config.attn_implementation
    is_gguf = _locate(config)[1] is not None
    if config.load_in_4bit:
        check_packing()
        kwargs |= packing(dtype, device)
    whole = whole_config(config)  # which refuses what was packed by others
    if is_gguf:
        kwargs["config"] = whole  # with the RoPE of the file
    if tokenizer is None:
        tokenizer = load_tokenizer(config)
    if is_gguf:
        kwargs |= _unpacked_gguf()
    model, info = _from_pretrained(AutoModelForCausalLM, config, **kwargs, output_loading_info=True)
    _check_complete(info["missing_keys"], config.name)
    if is_gguf:
        forget_quantization(model)
    if config.load_in_4bit:  # and put where they belong
        keep_layout(model)
    else:
        model.to(device)
    model.eval()
    if config.resize_embeddings:
        add_rows(model, len(tokenizer))
    check_tokenizer(tokenizer, model.get_input_embeddings().num_embeddings, config.name)
    return model, tokenizer


def load_tokenizer(config: ModelConfig) -> Any:
    """Load the tokenizer alone.

    Raises:
        ModelError: it cannot be found or read.
    """
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, config)
    check_templates(tokenizer, config.name)
    if file := _gguf(config):
        settle_tokenizer(tokenizer, file, config.name)
    return tokenizer


def load_config(config: ModelConfig) -> Any:
    """The text configuration alone: what can be checked before weights are read.

    Raises:
        ModelError: it cannot be found or read, is of packed weights, or asks for code from elsewhere.
    """
    return whole_config(config).get_text_config()


def whole_config(config: ModelConfig) -> Any:
    """The configuration of all of a model, as `load_config`."""
    from transformers import AutoConfig

    whole = _from_pretrained(AutoConfig, config)
    check_configuration(whole, config.name)
    if file := _gguf(config):
        apply_rope(whole.get_text_config(), file, config.name)
    return whole


def _gguf(config: ModelConfig) -> GgufFile | None:
    """The GGUF that the model is in, if it is in one; `transformers` has it already."""
    from transformers.utils import cached_file

    name, gguf_file = _locate(config)
    if gguf_file is None:
        return None
    try:
        return open_gguf(str(cached_file(name, gguf_file, revision=config.revision or "main")))
    except Exception as error:  # a broken file makes its parser raise anything
        raise unreadable(config.name, name, error) from error


def _from_pretrained(kind: Any, config: ModelConfig, /, **kwargs: Any) -> Any:
    name, gguf_file = _locate(config)
    if gguf_file:
        kwargs["gguf_file"] = gguf_file
    try:
        with quick_gguf() if gguf_file else contextlib.nullcontext():
            return kind.from_pretrained(
                name,
                revision=config.revision or "main",
                trust_remote_code=config.trust_remote_code,
                **kwargs,
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a broken file makes its parser raise anything
        if config.load_in_4bit and isinstance(error, ImportError):
            raise unusable(error) from error
        raise unreadable(config.name, name, error) from error


def _locate(config: ModelConfig) -> tuple[str, str | None]:
    name = config.name
    if name.startswith("package:"):
        return packaged_gguf(name.removeprefix("package:"))
    path = Path(os.path.expanduser(name))  # unlike Path.expanduser, leaves an unknown ~user alone
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(
                expected="a GGUF file", got=f"no file at {name}", fix="Check the path."
            )
        return str(path.parent), path.name
    looks_like_path = name.startswith(("/", "./", "../", "~"))
    if looks_like_path and not path.is_dir():
        raise ModelError(
            expected="a model folder with config.json",
            got=f"{'a file' if path.is_file() else 'no folder'} at {name}",
            fix="Check the path, or give a hub id.",
        )
    if path.is_dir():
        check_folder(path)
        return str(path), config.gguf_file
    if name.count("/") != 1 and not _is_cached(name):
        raise ModelError(
            expected="a folder, a GGUF file, package:NAME, or a hub id such as OWNER/NAME",
            got=f"{name!r}, and no folder of that name in {Path.cwd()}",
            fix="Check the name.",
        )
    return name, config.gguf_file


def _is_cached(name: str) -> bool:
    """Whether a hub repository of an old kind, without an owner, has been fetched before."""
    from huggingface_hub import try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:  # a name that no repository can have
        return False


def _unpacked_gguf() -> dict[str, Any]:
    # transformers 5.2x keeps GGUF weights packed unless told otherwise; earlier versions always unpack.
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def forget_quantization(model: Any) -> None:
    """Take away the marks of weights that are dense again; they forbid saving."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name, empty in (
        ("hf_quantizer", None),
        ("is_quantized", False),
        ("is_loaded_in_4bit", False),
        ("quantization_method", None),
    ):
        if hasattr(model, name):
            setattr(model, name, empty)


def check_tokenizer(tokenizer: Any, rows: int, name: str) -> None:
    """Refuse a tokenizer whose ids the model cannot embed.

    Args:
        tokenizer: of `transformers`.
        rows: of the model's embedding.
        name: the model's, for the message.

    Raises:
        ModelError: it has more tokens than the embedding has rows.
    """
    if len(tokenizer) > rows:
        raise ModelError(
            expected=f"a tokenizer of at most {rows} tokens, the rows of the model's embedding",
            got=f"one of {len(tokenizer)} for {name}",
            fix="Use the tokenizer that belongs to the model, or set model.resize_embeddings if tokens were "
            "added to it on purpose.",
        )


def _check_complete(missing: Iterable[str], name: str) -> None:
    # transformers fills absent weights with random ones and goes on
    if missing := sorted(missing):
        raise ModelError(
            expected=f"all weights of {name}",
            got=f"files without {len(missing)} of them, first {missing[0]!r}",
            fix="Download the model again, or use the folder it was saved in completely.",
        )
