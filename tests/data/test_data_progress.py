"""What shows progress where standard error is a file: lines, seldom, and nothing of a bar."""

import pytest

from linearard.data import progress, progress_bar


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets; of tqdm's own time."""
    now = [100.0]
    monkeypatch.setattr(progress._Lines, "_time", staticmethod(lambda: now[0]), raising=False)
    made = progress._Lines.__init__

    def init(self, *args, **options):
        made(self, *args, **options)
        self._time = lambda: now[0]
        self.start_t = self.last_print_t = now[0]

    monkeypatch.setattr(progress._Lines, "__init__", init)
    monkeypatch.setattr(progress._Lines, "monitor_interval", 0)
    return now


def test_a_line_now_and_then(clock, capsys):
    for _ in progress_bar(range(1000), shown=True, desc="original: pass key", leave=False):
        clock[0] += 0.1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[1] for line in lines] == ["30 s", "60 s", "90 s"]
    assert lines[0].startswith("original: pass key: 30") and " of 1,000, " in lines[0]


def test_what_is_moved_by_hand(clock, capsys):
    with progress_bar(shown=True, desc="writing", total=5000, unit="token", unit_scale=True) as bar:
        for _ in range(50):
            clock[0] += 1
            bar.n += 100
            bar.refresh()
    assert capsys.readouterr().err == "writing: 3,000 of 5,000 tokens, 30 s\n"


def test_short_work_and_quiet_work_write_nothing(clock, capsys):
    assert list(progress_bar(range(5), shown=True, desc="a")) == list(range(5))
    for _ in progress_bar(range(5), shown=False, desc="a"):
        clock[0] += 100
    assert capsys.readouterr().err == ""
