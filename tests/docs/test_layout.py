"""What is said of layout and dependencies is what is there."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
#: Made by a command, or a link into the package.
_MADE = {"build", "dist", "recipes", "runs", "site"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_layout_names_every_package_and_nothing_else():
    layout = re.search(
        r"^```\nsrc/linearard/\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S
    )[1]
    named = set(re.findall(r"^  ([\w/]+)/ ", layout, re.M))
    source = ROOT / "src" / "linearard"
    packages = {path.parent.name for path in source.glob("*/__init__.py")} | {"recipes"}
    assert {name.split("/")[0] for name in named} == packages
    assert all((source / name).is_dir() for name in named)
    folders = {p.name for p in ROOT.glob("[a-z]*/") if any(p.glob("*.*"))} - _MADE
    assert set(re.findall(r"^(\w+)/ ", layout, re.M)) == folders - {"src"}


def test_every_dependency_has_its_reason():
    page = (ROOT / "docs" / "reference" / "dependencies.md").read_text()
    rows = " ".join(re.findall(r"^\| ([^|]*) \|", page, re.M)).lower()
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in (one for some in lists for one in some):
        name = re.match(r"[\w-]+", requirement)[0].lower()
        assert name in f"{rows} linearard", (
            f"{name} is in pyproject.toml and has no row in dependencies.md"
        )


def test_every_page_is_in_the_navigation_once():
    class Loader(yaml.SafeLoader):
        """Of mkdocs.yml, whose tags for Python objects do not matter here."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    site = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    listed = [page for section in site["nav"] for pages in section.values() for page in pages]
    docs = ROOT / "docs"
    there = {
        p.relative_to(docs).as_posix() for p in docs.rglob("*") if p.suffix in (".md", ".ipynb")
    }
    assert len(listed) == len(set(listed)) and set(listed) == there


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
