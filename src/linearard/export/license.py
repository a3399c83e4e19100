"""The licence that a base model says it has."""

from __future__ import annotations

from pathlib import Path

from linearard.errors import UserError
from linearard.model import ModelConfig, gguf_path, names_gguf
from linearard.model.gguf_file import open_gguf


def license_of(name: str) -> str | None:
    """The licence of a base model by the hub's short name for it, None where nothing says it.

    Args:
        name: as in `model.name`: a GGUF says it in its keys, a folder or hub repository in its README.
    """
    if names_gguf(name):
        try:
            path = gguf_path(ModelConfig(name=name))
        except UserError:  # moved since; the licence is all that is asked of it
            return None
        if path is None:
            return None
        licence = open_gguf(str(path)).value("general.license")
        return None if licence is None else str(licence)
    readme = Path(name) / "README.md" if Path(name).is_dir() else _of_the_hub(name)
    if readme is None or not readme.is_file():
        return None
    from huggingface_hub import ModelCard

    try:
        found = ModelCard(readme.read_text(errors="replace"), ignore_metadata_errors=True)
    except ValueError:  # a front matter that is no YAML
        return None
    licence = found.data.get("license")
    return licence if isinstance(licence, str) else None


def _of_the_hub(name: str) -> Path | None:
    """The README of a hub repository; nothing where there is none or no network."""
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "README.md", etag_timeout=5))
    except Exception:  # whatever goes wrong: an export does not fail for want of a licence's name
        return None
