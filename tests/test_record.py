"""Turns of measurements, and where a result came from."""

from collections import Counter
from itertools import pairwise

import pytest

from benchmarks.record import circumstances, in_turns


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_everyone_comes_behind_everyone(count):
    rounds = count * (1 + count % 2)
    turns = list(in_turns(map(str, range(count)), rounds))
    rows = [turns[i : i + count] for i in range(0, len(turns), count)]
    assert len(rows) == rounds and all(len(set(row)) == count for row in rows)
    behind = Counter(pair for row in rows for pair in pairwise(row))
    assert len(behind) == count * (count - 1) and len(set(behind.values())) <= 1
    assert len(set(Counter(row[0] for row in rows).values())) == 1
    assert list(in_turns(map(str, range(count)), rounds + 1))[-count:] == rows[0]


def test_a_copy_without_git_costs_no_measurement(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert circumstances(None, "cpu")["commit"] == "unknown"
    assert "--commit" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))  # not even git itself
    assert circumstances(None, "cpu")["commit"] == "unknown"
    assert circumstances("abc", "cpu")["commit"] == "abc"
