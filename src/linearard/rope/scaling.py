"""RoPE scalings: what a user may ask for, and the frequency table it means.

A scaling is given as in `transformers`' `rope_parameters` (`rope_type` and its keys), or as an explicit
table (`rope_type: table`).
"""

from __future__ import annotations

import difflib
import json
from typing import Any

import torch

from linearard.errors import RopeError, shown
from linearard.fields import check_value, flag, number, one_of, user_path
from linearard.rope.judge import check_direction, check_slower
from linearard.rope.native import (
    ORIGINAL,
    carried_keys,
    head_dim,
    native_parameters,
    native_window,
)
from linearard.rope.table import RopeTable, formula_table, native_table, plain_table, table_over

#: Required and optional keys per scaling, beside those allowed everywhere.
_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "linear": ({"factor"}, set()),
    "dynamic": ({"factor"}, set()),
    "yarn": (
        {"factor"},
        {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    ),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor"}, set()),
    "longrope": ({"factor", "long_factor"}, {"short_factor", "attention_factor"}),
    "table": ({"factor", "inv_freq"}, {"attention_factor"}),
    "default": ({"factor", "rope_theta"}, set()),
}
#: What a scaling of the model's own type takes from the model where it says nothing else.
_INHERITED = {
    "yarn": ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
}
#: What numbers may be; any other is above 0.
_RANGES = {
    "factor": number(1, 1e9, above=True),
    "partial_rotary_factor": number(0, 1, above=True),
    "attention_factor": number(0, 1000, above=True),
    "mscale": number(0, 1000, above=True),
    "mscale_all_dim": number(0, 1000, above=True),
    "rope_theta": number(1, 1e15, above=True),
    "beta_fast": number(1e-6, 1e9),
    "beta_slow": number(1e-6, 1e9),
    "truncate": flag(),
}
_POSITIVE = number(0, 1e30, above=True)
_LONGEST_FILE = 1 << 20  # bytes of a table
_COUNTED_FROM = "counted_from"
_EVERYWHERE = {"rope_type", "rope_theta", "partial_rotary_factor", ORIGINAL, _COUNTED_FROM}


def check_scaling(scaling: dict[str, Any], config: Any) -> dict[str, Any]:
    """Validate a requested scaling against a model's configuration.

    Args:
        scaling: as in `rope_parameters`, or `{"rope_type": "table", "factor": f, "inv_freq": [...]}`
            where `inv_freq` may also name a JSON file holding the list. `counted_from: model` applies
            the formula to the model's frequencies as they are, scaled or not, and counts `factor` from
            its window of today; `original`, the default for a scaling of the model's own type, applies
            it to plain frequencies. Over a model scaled in another way `model` is the only choice.
        config: the model's text configuration, untouched.

    Returns:
        The complete scaling: `rope_theta`, `partial_rotary_factor`, the original window and keys that
        the model reads beside a formula's filled in. Counted from a scaled model it is a `table`.

    Raises:
        RopeError: unknown type or key, factor <= 1, a value that is no positive number, wrong list
            length, no stretch, or one that makes a frequency faster than the model's own.
    """
    scaling = dict(scaling)
    kind = _kind(scaling)
    native = native_parameters(config)
    native_kind = native.get("rope_type", native.get("type", "default"))
    if native_kind not in _KEYS:
        raise RopeError(
            expected=f"a model whose own rope_type is one of {', '.join(sorted(_KEYS.keys() - {'table'}))}",
            got=f"{native_kind!r} of model_type {config.model_type!r}",
            fix="Choose another model: its frequencies cannot be stretched here.",
        )
    if native_kind == kind:
        for key in _INHERITED.get(kind, ()):
            if native.get(key) is not None:
                scaling.setdefault(key, native[key])
    carried = carried_keys(config)
    _check_keys(scaling, kind, carried)
    over_model = _counts_from_model(scaling, kind, native_kind)
    if ORIGINAL in scaling:
        _check_original(scaling[ORIGINAL], config, over_model)
    _check_numbers({k: v for k, v in scaling.items() if k not in carried})
    scaling["factor"] = float(scaling["factor"])
    scaling |= carried
    scaling.setdefault("rope_theta", native.get("rope_theta"))
    if native.get("partial_rotary_factor") is not None:
        scaling.setdefault("partial_rotary_factor", native["partial_rotary_factor"])
    if kind in ("yarn", "llama3", "longrope") and not over_model:
        own = native.get(ORIGINAL) if native_kind == kind else None
        scaling.setdefault(ORIGINAL, own or native_window(config))
    _check_lists(scaling, kind, config)
    own_table = native_table(config)
    if over_model:
        scaling = _as_table(scaling, native, own_table, config)
    _check_window(scaling, native, config)
    table = compute_table(scaling, config)
    if table.inv_freq.shape != own_table.inv_freq.shape:
        raise RopeError(
            expected=f"{len(own_table.inv_freq)} frequencies, as the model's rotary module has",
            got=f"{len(table.inv_freq)}",
            fix="Check partial_rotary_factor or the length of the table.",
        )
    check_slower(own_table, table, _fix_of_faster(kind, native_kind, native, config))
    check_direction(plain_table(scaling, config), table)
    return scaling


def target_window(scaling: dict[str, Any], config: Any) -> int:
    """Tokens the stretched model is meant to read: factor times the native window.

    A scaling that names its own `original_max_position_embeddings` counts from there.
    """
    native = native_parameters(config)
    original = native_window(config)
    if scaling.get(ORIGINAL) and not _belongs_to_the_model(scaling, native, config):
        original = scaling[ORIGINAL]
    if scaling["rope_type"] == native.get("rope_type") == "linear":
        original /= native["factor"]  # the native window holds the native factor already
    return round(scaling["factor"] * original)


def compute_table(scaling: dict[str, Any], config: Any) -> RopeTable:
    """The frequency table of a checked scaling.

    `dynamic` and `longrope` change their table with the length of the text in `transformers`. A model can
    be trained for one table only, so both are taken at the target window, which is also what vLLM does
    for `dynamic`; the export writes a configuration in which the table is the same at every length.
    """
    if scaling["rope_type"] == "table":
        return RopeTable(
            torch.tensor(scaling["inv_freq"], dtype=torch.float32),
            float(scaling.get("attention_factor", 1.0)),
        )
    window, target = native_window(config, scaling), target_window(scaling, config)
    return formula_table(scaling, config, window=window, tokens=target)


def _kind(scaling: dict[str, Any]) -> str:
    """The scaling's type, whichever of its two names it is under; one name is left."""
    older = scaling.pop("type", None)
    kind = scaling.setdefault("rope_type", older)
    if older is not None and older != kind:
        raise RopeError(
            expected="one type of scaling",
            got=f"rope_type {kind!r} and type {older!r} in one mapping",
            fix="Leave rope.type, the older name, out.",
        )
    check_value(kind, one_of(_KEYS), "rope.rope_type", error=RopeError)
    return kind


def _check_keys(scaling: dict[str, Any], kind: str, carried: dict[str, Any]) -> None:
    required, optional = _KEYS[kind]
    known = required | optional | _EVERYWHERE
    for key, value in scaling.items():
        if key in carried and value != carried[key]:
            raise RopeError(
                expected=f"{key} {carried[key]!r}, which the model itself reads in its configuration",
                got=repr(value),
                fix=f"Leave rope.{key} out.",
            )
        if key not in known and key not in carried:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else "Remove it."
            raise RopeError(
                expected=f"{kind!r} keys among {', '.join(sorted(known))}", got=repr(key), fix=hint
            )
    missing = sorted(required - scaling.keys())
    if missing:
        raise RopeError(
            expected=f"{', '.join(sorted(required))} for rope_type {kind!r}",
            got=f"no {', '.join(missing)}",
            fix="Add it under rope in the recipe.",
        )
    factor = scaling["factor"]
    if not _RANGES["factor"].right(factor):
        large = _POSITIVE.right(factor) and factor > 1
        raise RopeError(
            expected="a stretch factor above 1" + (", at most 1e9" if large else ""),
            value=factor,
            fix="Set rope.factor to target window / native window, for instance 8.",
        )


def _counts_from_model(scaling: dict[str, Any], kind: str, native_kind: str) -> bool:
    """Whether the formula applies to frequencies that are scaled already; takes its key out."""
    asked = scaling.pop(_COUNTED_FROM, None)
    known = one_of(("model", "original")).or_null()
    check_value(asked, known, f"rope.{_COUNTED_FROM}", error=RopeError)
    if native_kind == "default" or kind == "table":
        return False
    if kind != native_kind and asked == "original":
        raise RopeError(
            expected=f"rope_type {native_kind!r} (the model's own) with counted_from original",
            got=f"{kind!r}, which would discard the model's {native_kind!r} scaling",
            fix="Set rope.counted_from to model, or give an explicit table.",
        )
    return kind != native_kind or asked == "model"


def _as_table(
    scaling: dict[str, Any], native: dict[str, Any], own_table: RopeTable, config: Any
) -> dict[str, Any]:
    """The scaling over the model's own frequencies, written out."""
    theta = native.get("rope_theta")
    if scaling["rope_type"] in ("yarn", "llama3") and scaling["rope_theta"] != theta:
        raise RopeError(
            expected=f"rope_theta {theta}, the model's own, for a scaling counted from the model as it is",
            got=repr(scaling["rope_theta"]),
            fix="Leave rope.rope_theta out, or give an explicit table.",
        )
    table = table_over(own_table, scaling, config, native_window(config))
    kept = ("factor", "partial_rotary_factor", *carried_keys(config))
    return {key: scaling[key] for key in kept if key in scaling} | {
        "rope_type": "table",
        "rope_theta": theta,
        "inv_freq": table.inv_freq.tolist(),
        "attention_factor": table.attention_scaling,
    }


def _check_window(scaling: dict[str, Any], native: dict[str, Any], config: Any) -> None:
    native_tokens, target = native_window(config, scaling), target_window(scaling, config)
    if target <= native_tokens:  # possible where the model's own RoPE is scaled already
        raise RopeError(
            expected=f"a factor that stretches beyond the model's window of {native_tokens} tokens",
            got=f"{scaling['factor']:g}, which gives {target}",
            fix="Raise rope.factor: it counts from the window before the model's own "
            f"{native.get('rope_type')!r} scaling. Or set rope.counted_from to model.",
        )


def _fix_of_faster(kind: str, native_kind: str, native: dict[str, Any], config: Any) -> str | None:
    if kind != native_kind or kind == "default":
        return None
    before = native.get(ORIGINAL) or native_window(config)
    return (
        f"The formula counts from before the model's own {kind!r} scaling: give the model's own keys "
        f"({ORIGINAL} {before}) and a factor above its {native.get('factor')}. To count from the model as it "
        "is, set rope.counted_from to model."
    )


def _belongs_to_the_model(scaling: dict[str, Any], native: dict[str, Any], config: Any) -> bool:
    """Whether the original window stands in the scaling for the model's other code alone."""
    same_formula = scaling["rope_type"] == native.get("rope_type")
    return ORIGINAL in carried_keys(config) and not (
        same_formula and scaling["rope_type"] in ("yarn", "llama3", "longrope")
    )


def _check_original(value: Any, config: Any, over_model: bool) -> None:
    longest = native_window(config)
    shortest = longest if over_model else 2
    if isinstance(value, bool) or not isinstance(value, int) or not shortest <= value <= longest:
        expected = f"{longest}" if over_model else f"from 2 to {longest}"
        raise RopeError(
            expected=f"{ORIGINAL} {expected}, the model's max_position_embeddings",
            got=repr(value),
            fix="Give the tokens the model was trained to read, or leave the key out.",
        )


def _check_numbers(scaling: dict[str, Any]) -> None:
    for key, value in scaling.items():
        if key in ("rope_type", "inv_freq", "long_factor", "short_factor"):
            continue
        check_value(value, _RANGES.get(key, _POSITIVE), f"rope.{key}", error=RopeError)
    low, high = (scaling.get(f"{end}_freq_factor", 0) for end in ("low", "high"))
    if low and not low < high:
        raise RopeError(
            expected="low_freq_factor below high_freq_factor",
            got=f"{low} and {high}",
            fix="Set rope.low_freq_factor and rope.high_freq_factor; Llama 3.1 has 1 and 4.",
        )
    fast, slow = scaling.get("beta_fast", 32), scaling.get("beta_slow", 1)
    if not slow < fast:
        raise RopeError(
            expected="beta_slow below beta_fast",
            got=f"beta_fast {fast} and beta_slow {slow}, which slow the fast pairs and keep the slow ones",
            fix="Set rope.beta_fast and rope.beta_slow; the paper has 32 and 1.",
        )


def _check_lists(scaling: dict[str, Any], kind: str, config: Any) -> None:
    width = int(head_dim(config) * (scaling.get("partial_rotary_factor") or 1.0))
    if width % 2:
        raise RopeError(
            expected="an even number of rotated dimensions in a head",
            got=f"{width} of {head_dim(config)}",
            fix="Set rope.partial_rotary_factor, or choose another model if this is the model's own.",
        )
    half = width // 2
    if kind == "longrope":
        # One table for every length: the one for long text. See `compute_table`.
        scaling["short_factor"] = scaling["long_factor"]
        _check_list("long_factor", scaling["long_factor"], half)
    if kind == "table":
        scaling["inv_freq"] = _read_list(scaling["inv_freq"])
        _check_list("inv_freq", scaling["inv_freq"], half)


def _check_list(name: str, values: Any, length: int) -> None:
    numbers = isinstance(values, list) and all(map(_POSITIVE.right, values))
    if not numbers or len(values) != length:
        got = f"{len(values)} values" if isinstance(values, list) else type(values).__name__
        raise RopeError(
            expected=f"{name} to be a list of {length} positive numbers (rotary_dim / 2)",
            got=got,
            fix="One number per rotated pair of dimensions, highest frequency first.",
        )


def _read_list(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        with open(user_path(value, "rope.inv_freq"), "rb") as file:
            content = file.read(_LONGEST_FILE + 1)
        if len(content) > _LONGEST_FILE:
            raise ValueError(f"more than {_LONGEST_FILE >> 20} MiB")
        return json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise RopeError(
            expected="inv_freq to be a list or a JSON file holding one",
            got=f"{shown(value)} ({' '.join(str(error).split())[:200]})",
            fix="Check the path in rope.inv_freq.",
        ) from None
