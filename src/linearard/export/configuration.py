"""An exported `config.json`, with the stretched RoPE in every dialect.

transformers 5 reads `rope_parameters`; transformers 4 and vLLM read `rope_scaling` and `rope_theta`, or
what a class calls it. All are written, in the representation that most readers understand alike.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from linearard.architectures import architecture
from linearard.export.representation import exported_rope
from linearard.rope import RopeViews
from linearard.storage import write_json

_ORIGINAL = "original_max_position_embeddings"
#: Keys that say what the frequencies are. All others of the model's own stay beside another scaling: its
#: code reads them elsewhere.
_OF_THE_FORMULA = {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    _ORIGINAL,
    "attention_factor",
    "attn_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
    "long_factor",
    "short_mscale",
    "long_mscale",
    "inv_freq",
}


def write_configuration(
    config: Any,
    rope: RopeViews,
    folder: Path,
    *,
    dtype: str | None = None,
    window: int | None = None,
) -> None:
    """Write `config.json` with the stretched RoPE and window.

    Args:
        config: the base model's configuration; left as it is.
        rope: its views.
        folder: receives `config.json`.
        dtype: in which readers shall hold the weights, such as `float32`; default: the configuration's.
        window: tokens that the model says it reads; the target window where nothing is given.
    """
    window = window or rope.target_window
    config.save_pretrained(folder)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content.pop("quantization_config", None)
    # Multimodal configurations keep the language model's part one level down.
    text = content.get("text_config", content)
    for part in (content, text):
        if dtype is not None and (part is content or "dtype" in part):
            part["dtype"] = dtype
    nested = text.get("rope_parameters") or {}
    own = nested.get("full_attention", nested)
    flat = exported_rope(rope, text["model_type"], window)
    flat = {k: v for k, v in own.items() if k not in _OF_THE_FORMULA} | flat
    if _ORIGINAL in own and flat["rope_type"] == "longrope":  # with equal factors of no other use
        flat[_ORIGINAL] = own[_ORIGINAL]
    if "full_attention" in nested:
        text["rope_parameters"] = {**nested, "full_attention": flat}
        local = nested.get("sliding_attention") or flat
        text["rope_local_base_freq"] = local["rope_theta"]
    else:
        text["rope_parameters"] = flat
    # Beside the scaling, where transformers 4 looks, under the names that the class has there.
    beside = ("rope_theta", "partial_rotary_factor")
    text |= {key: flat[key] for key in beside if key in flat}
    names = zip(architecture(text["model_type"]).in_transformers_4.names, beside, strict=False)
    text |= {name: flat[key] for name, key in names if key in flat}
    if _ORIGINAL in text:  # Phi-3 puts this one above all
        text[_ORIGINAL] = flat.get(_ORIGINAL, rope.native_window)
    text["rope_scaling"] = None if flat["rope_type"] == "default" else _older(text, flat)
    text["max_position_embeddings"] = window
    _say_plainly(text, config.get_text_config(), rope)
    write_json(path, content)
    if "full_attention" in nested and not _is_read(config, folder, flat):
        # transformers 5 takes the flat one for all layer types here; 4 never had these classes.
        text.pop("rope_scaling")
        write_json(path, content)


def _say_plainly(text: dict[str, Any], config: Any, rope: RopeViews) -> None:
    """Write down what the model's own configuration leaves to its readers."""
    # The names that transformers 4 has for what 5 has renamed, such as Qwen3-MoE's num_experts.
    for other, name in type(config).attribute_map.items():
        if name in text:
            text.setdefault(other, text[name])
    # RoPE functions of transformers 5 cannot do without it, though the model's code can (Mixtral).
    if "head_dim" in text and text["head_dim"] is None:
        width = config.hidden_size // config.num_attention_heads
        if all(2 * len(table.inv_freq) <= width for table in rope.tables("native").values()):
            text["head_dim"] = width


def _is_read(config: Any, folder: Path, flat: dict[str, Any]) -> bool:
    """Whether the configuration's own class finds the scaling of full attention again."""
    try:
        found = type(config).from_pretrained(folder).get_text_config().rope_parameters or {}
    except (
        Exception
    ):  # some classes check what they read, with errors of their own (Cohere Compass)
        return False
    found = found.get("full_attention") or {}
    return all(found.get(key) == value for key, value in flat.items())


def reader_notes(
    model_type: str, flat: dict[str, Any], merge: dict[str, Any] | None = None
) -> list[str]:
    """What a user of some readers has to know of an export: sentences.

    Args:
        model_type: of the text configuration.
        flat: the exported RoPE, of `exported_rope`.
        merge: how trained weights were merged (`merging.Price` as a dictionary), if they were.
    """
    kind, there = flat["rope_type"], architecture(model_type).in_transformers_4
    notes = []
    if there.longrope_alone or (there.linear_alone and kind not in ("linear", "default")):
        notes.append(
            f"transformers 4 refuses this {kind} scaling of {model_type}: read this export with "
            "transformers 5."
        )
    if not there.same_with_a_mask:
        notes.append(
            f"transformers 4 computes {model_type} otherwise where it is given an attention mask, the base "
            "model too: read this export with transformers 5."
        )
    wide = merge is not None and merge["dtype"] == "float32" and not merge.get("narrower")
    if there.bfloat16_parts and wide:
        notes.append(
            f"transformers 4 rounds the activation's parameters of {model_type} to bfloat16, in the base "
            "model too: read this export, which is in float32, with transformers 5."
        )
    if not there.reads_configuration:
        notes.append(
            f"transformers 4 cannot read a configuration of {model_type} that transformers 5 has written: "
            "read this export with transformers 5."
        )
    if there.ignores_scaling and kind != "default":
        notes.append(
            f"transformers 4 ignores RoPE scaling of {model_type} and gives a broken model without a word: "
            "read this export with transformers 5."
        )
    if merge and merge["dtype"] == "float32" and merge.get("narrower"):
        notes.append(
            "The trained weights are in float32, wider than the others: read this export in float32 "
            "(dtype='float32', vLLM: --dtype float32), or the reader rounds what training changed."
        )
    return notes


def _older(text: dict[str, Any], flat: dict[str, Any]) -> dict[str, Any]:
    """The same as `rope_scaling`, which transformers 5 prefers where there is one: so it is complete."""
    there = architecture(text["model_type"]).in_transformers_4
    if there.linear_alone and flat["rope_type"] == "linear":
        return {"type": "linear", "factor": flat["factor"]}
    return dict(flat)


def write_tokenizer(tokenizer: Any, window: int, folder: Path) -> None:
    """Save a tokenizer for the stretched window, in words that transformers 4 reads too.

    Args:
        tokenizer: left as it is.
        window: tokens the stretched model is meant to read.
        folder: receives its files.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text())
    content["model_max_length"] = window
    if content.get("tokenizer_class") == "TokenizersBackend":  # the name in transformers 5
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(content.get("extra_special_tokens"), list):  # the same; a mapping in 4
        content["additional_special_tokens"] = content.pop("extra_special_tokens")
    write_json(path, content)
