"""The queue of measurements: one that fails or hangs costs itself alone."""

import json

import pytest

from benchmarks import queue

ITEMS = [
    queue.Item("fails", "no_such_module", 0, 20),
    queue.Item("hangs", "hanging", 0, 1),
    queue.Item("works", "timeit -n 1 -r 1", 0, 20),
    queue.Item("too_long", "timeit", 10_000, 10_000),
]


def test_each_command_has_its_own_end(tmp_path, monkeypatch):
    """Also what a hanging command has started ends with it, and its output is kept."""
    (tmp_path / "hanging.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = queue.run(ITEMS, {"out": str(tmp_path / "out")}, seconds=60)
    codes = {name: row["code"] for name, row in found.items()}
    assert codes == {"fails": 1, "hangs": -9, "works": 0, "too_long": None}
    assert json.loads((tmp_path / "out" / "queue.json").read_text()) == found
    assert "no_such_module" in (tmp_path / "out" / "fails.log").read_text()
    child = int((tmp_path / "out" / "hangs.log").read_text())
    assert not is_running(child)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kernel", "--out", "x"], "no queue kernel; there are tests, kernels, steps"),
        (["kernels"], "a folder with --out"),
        (["recovery", "--out", "x", "--model", "m"], "needs --train, --validation, --tasks"),
    ],
)
def test_what_is_missing_is_named(arguments, said, capsys):
    with pytest.raises(SystemExit):
        queue.main(arguments)
    assert said in capsys.readouterr().err
