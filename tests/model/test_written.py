"""Lists of what was written: damage is seen, and nothing else is ever removed."""

import json
import os
import shutil

import pytest

from linearard.model import written

FILES = {"a.bin": b"\0" * 70_001, "empty": b"", "b.json": b'{"x": 1}', "deep/er/c.txt": b"text"}


@pytest.fixture
def folder(tmp_path):
    """A complete folder."""
    folder = tmp_path / "checkpoint"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    written.complete(folder)
    return folder


def test_a_whole_folder(folder):
    assert written.is_complete(folder) and written.damage(folder) == ""
    assert json.loads((folder / "complete.json").read_text())["files"].keys() == FILES.keys()
    (folder / "notes.txt").write_text("a user's")
    assert written.damage(folder) == ""


@pytest.mark.parametrize("name", ["a.bin", "b.json", "deep/er/c.txt"])
def test_every_bit_counts(name, folder):
    content = FILES[name]
    for position in {0, len(content) // 2, len(content) - 1}:
        for bit in range(8):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            (folder / name).write_bytes(changed)
            assert written.damage(folder) == f"{name}: not the bytes that were written"
            assert written.is_complete(folder)  # by its sizes


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_or_has_another_length(name, folder):
    (folder / name).write_bytes(FILES[name] + b"x")
    assert written.damage(folder).startswith(f"{name}: {len(FILES[name]) + 1:,} bytes instead of ")
    (folder / name).unlink()
    assert written.damage(folder) == f"{name}: missing"
    assert not written.is_complete(folder)
    (folder / name).mkdir()
    assert written.damage(folder) == f"{name}: missing"


def test_every_bit_of_the_list_counts(folder):
    """A flipped bit in the list itself is damage, or leaves what it says (a space in its indentation)."""
    marker = folder / "complete.json"
    whole = marker.read_bytes()
    said = json.loads(whole)
    for position in range(len(whole)):
        for bit in range(0, 8, 3):
            changed = bytearray(whole)
            changed[position] ^= 1 << bit
            marker.write_bytes(changed)
            if not written.damage(folder):
                assert json.loads(bytes(changed)) == said, changed
    for cut in (b"", whole[:50], b"[]", b'{"files": []}', b'{"files": {"a.bin": 3}}', b"[" * 9999):
        marker.write_bytes(cut)
        assert written.damage(folder) and not written.is_complete(folder)


def test_only_what_is_listed_is_removed(folder):
    for name in ("notes.txt", "deep/mine.txt"):
        (folder / name).write_text("a user's")
    written.remove(folder)
    left = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert left == {"notes.txt", "deep/mine.txt"}
    shutil.rmtree(folder / "deep")
    (folder / "notes.txt").unlink()
    written.remove(folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    "name", ["../mine.txt", "deep/../../mine.txt", "link/mine.txt", "", "/mine"]
)
def test_a_strangers_list_leads_nowhere(name, tmp_path):
    """Neither out of the folder nor through a link."""
    (tmp_path / "home").mkdir()
    mine = tmp_path / "home" / "mine.txt"
    mine.write_text("a user's")
    folder = tmp_path / "home" / "stranger"
    folder.mkdir()
    os.symlink(tmp_path / "home", folder / "link")
    name = str(mine) if name == "/mine" else name
    for marker in ("complete.json", ".linearard.json"):
        (folder / marker).write_text(json.dumps({"files": {name: {"size": 8, "sha256": "0"}}}))
    assert "lists no good" in written.damage(folder)
    written.remove(folder)
    written.remove_noted(folder)
    assert mine.read_text() == "a user's"
    assert (folder / "link").is_symlink()


def test_a_removal_that_was_killed_is_finished_by_the_next(folder, monkeypatch):
    unlink, left = type(folder).unlink, [2]

    def killed(path, missing_ok=False):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(type(folder), "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            written.remove(folder)
    assert not written.is_complete(folder)
    written.remove(folder)
    assert not folder.exists()


def test_a_folder_takes_the_place_of_another(folder, tmp_path):
    staged = tmp_path / "staged"
    staged.mkdir()
    (staged / "a.bin").write_bytes(b"new")
    written.complete(staged)
    (folder / "notes.txt").write_text("a user's")
    written.install(staged, folder)
    assert written.is_complete(folder) and written.damage(folder) == ""
    assert {p.name for p in folder.iterdir()} == {"a.bin", "complete.json", "notes.txt"}
    assert (folder / "a.bin").read_bytes() == b"new" and not staged.exists()


def test_files_reach_the_disk_before_the_word_that_they_do(folder, monkeypatch):
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}"))
    )
    written.complete(folder)
    names = [os.path.relpath(path, folder) for path in synced]
    marker = next(name for name in names if name.startswith(".complete.json"))
    assert set(names[: names.index(marker)]) == FILES.keys()
    assert names[-1] == "."
