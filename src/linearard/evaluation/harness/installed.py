"""Whether lm-eval is here; it is an optional extra."""

from __future__ import annotations

from importlib.util import find_spec

from linearard.errors import RecipeError

_EXTRA = 'Install the extra: pip install "linearard[lm-eval]".'
#: What the tasks of RULER import beside lm-eval itself.
_FOR_RULER = ("nltk", "scipy", "wonderwords")


def check_installed(*, ruler: bool) -> None:
    """Refuse tasks of lm-eval where it is not installed, before anything is read.

    Args:
        ruler: whether RULER's tasks are asked for.

    Raises:
        RecipeError: a package is missing; the message names the extra that brings it.
    """
    needed = ("lm_eval", *(_FOR_RULER if ruler else ()))
    if missing := [name for name in needed if find_spec(name) is None]:
        raise RecipeError(
            expected=f"the packages {', '.join(needed)} for tasks of lm-eval",
            got=f"no {', no '.join(missing)} in this Python",
            fix=_EXTRA,
        )
