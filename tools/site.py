"""Hook of MkDocs: pages that are made from the code, and files of the repository that pages link to.

- `<!-- generated:NAME -->` in a page is replaced by what `tools.reference` makes.
- A link that leaves `docs/` leads, on the site, to a copy of the file under `files/`; text as a page of its
  own, so that a browser shows it. A link to a folder becomes its name.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tools import reference  # noqa: E402

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)
#: Shown as they are; everything else is shown as text.
_SHOWN = (".html", ".svg", ".png", ".json")
_LANGUAGES = {
    ".py": "python",
    ".yaml": "yaml",
    ".cu": "cpp",
    ".h": "cpp",
    ".toml": "toml",
    "": "text",
}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the files outside `docs/` that pages link to."""
    seen: set[str] = set()
    waiting = [Path(file.abs_src_path) for file in files if file.src_uri.endswith(".md")]
    while waiting:
        page = waiting.pop()
        for target in _outside(page):
            name = target.relative_to(ROOT).as_posix()
            if name in seen:
                continue
            seen.add(name)
            files.append(_copy(target, name, config))
            if target.suffix == ".md":
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is generated, and lead links out of `docs/` to their copies."""
    markdown = re.sub(
        r"<!-- generated:(\w+) -->", lambda found: reference.PAGES[found[1]](), markdown
    )
    source = page.file.src_uri
    origin = ROOT / source.removeprefix("files/") if source.startswith("files/") else None
    if origin is not None and origin.name.endswith(".md.md"):
        origin = origin.with_suffix("")
    here = (origin or Path(config.docs_dir) / source).parent
    parts = _CODE.split(markdown)
    for index in range(0, len(parts), 2):
        parts[index] = _LINK.sub(lambda found: _led(found, here, source), parts[index])
    return "".join(parts)


def _outside(page: Path) -> list[Path]:
    """Files of the repository outside `docs/` that a page links to."""
    found = []
    for _, _, target, _ in _LINK.findall(_CODE.sub("", page.read_text())):
        path = (page.parent / target).resolve()
        inside = path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "docs")
        if inside and path.is_file() and ":" not in target:
            found.append(path)
    return found


def _copy(path: Path, name: str, config: MkDocsConfig) -> File:
    """A file of the site under `files/`: itself, or a page that shows its text."""
    if path.suffix in _SHOWN:
        return File.generated(config, f"files/{name}", abs_src_path=str(path))
    text = path.read_text()
    if path.suffix != ".md":
        language = _LANGUAGES.get(path.suffix, "text")
        text = f"# {path.name}\n\n`{name}`\n\n````{language}\n{text}\n````\n"
    return File.generated(config, f"files/{name}.md", content=text)


def _led(found: re.Match[str], here: Path, source: str) -> str:
    """A link, to the copy of what it led to where that is outside `docs/`."""
    image, label, target, anchor = found.groups(default="")
    if re.match(r"[a-z]+:", target):
        return found[0]
    path = (here / target).resolve()
    if not path.is_relative_to(ROOT):
        return found[0]
    if path.is_dir():
        return (
            label if label.startswith("`") else f"{label} (`{path.relative_to(ROOT).as_posix()}/`)"
        )
    if path.is_relative_to(ROOT / "docs"):
        to = path.relative_to(ROOT / "docs").as_posix()
    else:
        to = f"files/{path.relative_to(ROOT).as_posix()}"
        to += "" if path.suffix in _SHOWN else ".md"
    return f"{image}[{label}]({posixpath.relpath(to, os.path.dirname(source) or '.')}{anchor})"


def on_config(config: MkDocsConfig) -> Any:
    """Pages under `files/` are reached by links alone."""
    config.not_in_nav = _pathspec("files/")
    return config


def _pathspec(pattern: str) -> Any:
    from pathspec.gitignore import GitIgnoreSpec

    return GitIgnoreSpec.from_lines([pattern])
