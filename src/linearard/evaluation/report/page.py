"""Templates of the pages."""

from __future__ import annotations

from importlib import resources
from typing import Any


def render(template: str, **content: Any) -> str:
    """One self-contained page: styles and drawings are inside, nothing is loaded, no script runs.

    Args:
        template: name of a file beside this one.
        content: what the template reads; all of it must be given.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = resources.files("linearard.evaluation.report")
    environment = Environment(
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**content)
