"""Tables fit a page: at most eight columns, and twelve rows where people read rather than look up."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").rglob("*.md")} - {ROOT / "docs" / "LOG.md"})
#: Pages to look things up in.
_LISTS = ("docs/reference/", "docs/research/selection.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_tables_fit_a_page(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    most = 10_000 if page.relative_to(ROOT).as_posix().startswith(_LISTS) else 12
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        header, _, *rows = table.strip().splitlines()
        columns = re.sub(r"\\\||`[^`]*`", "", header).count("|") - 1
        assert columns <= 8 and len(rows) <= most, f"{columns} columns, {len(rows)} rows: {header}"
