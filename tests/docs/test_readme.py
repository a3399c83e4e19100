"""What the README shows works: its Python runs, its pictures and tables are what the code makes."""

import re
import subprocess
import sys
from pathlib import Path

from small_run import write_text

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_its_python_trains_a_model(base_folder, tmp_path, monkeypatch):
    """As it stands, on a tiny model with as many and as long windows as that can read, on a CPU."""
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    assert len(code.splitlines()) <= 14
    smaller = {
        '"HuggingFaceTB/SmolLM2-135M-Instruct"': repr(str(base_folder)),
        '"books/"': repr(str(write_text(tmp_path / "books"))),
        "2048": "48",
        "count=1152": "count=4",
        "bf16=True": "use_cpu=True",
    }
    for written, small in smaller.items():
        assert written in code, f"the README no longer says {written}"
        code = code.replace(written, small)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert len(names["blocks"]) == 4
    assert names["model"].adapter.parameters()
    assert (tmp_path / "runs" / "python").is_dir()


def test_its_tables_fit_a_page():
    """At most six columns and five rows each, but for lists of links."""
    for table in re.findall(r"<!-- table:\S+ -->\n(.*?)<!-- /table -->", README, re.S):
        rows = table.strip().splitlines()
        assert len(rows) <= 7 and rows[0].count("|") <= 7


def test_it_is_short():
    assert len(README.splitlines()) <= 130


def test_pictures_are_what_is_drawn():
    command = [sys.executable, "-m", "tools.pictures", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
