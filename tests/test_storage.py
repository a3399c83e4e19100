"""Files are whole or not there."""

import json
import os

import pytest

from linearard import storage


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert storage.cache_folder("blocks") == tmp_path / "linearard" / "blocks"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert storage.cache_folder("x") == tmp_path / "home" / ".cache" / "linearard" / "x"


def test_an_error_leaves_the_file_of_before(tmp_path):
    path = tmp_path / "x.json"
    storage.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        storage.write_json(path, {"a": object()})
    with pytest.raises(KeyError), storage.replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert json.loads(path.read_text()) == {"a": 1} and path.read_text().endswith("}\n")
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_leaves_is_known_by_its_name(tmp_path):
    with storage.beginning(tmp_path / "a.json") as temporary:
        assert storage.begun(temporary.name) == "a.json" and str(os.getpid()) in temporary.name
        temporary.write_text("half")
        kept = temporary.rename(tmp_path / ".a.json.4242")
    others = [tmp_path / name for name in (".b.json.7", "a.json", ".a.json", ".a.json.old", ".7.7")]
    for path in others:
        path.write_text("")
    assert [storage.begun(path.name) for path in others] == ["b.json", None, None, None, "7"]
    storage.remove_beginnings(tmp_path, {"a.json"})
    assert not kept.exists() and sorted(tmp_path.iterdir()) == sorted(others)
