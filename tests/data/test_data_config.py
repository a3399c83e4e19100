from dataclasses import fields

import pytest

from linearard.data import DataConfig
from linearard.errors import RecipeError


def test_every_field_is_described():
    assert all(field.metadata["help"] for field in fields(DataConfig))


@pytest.mark.parametrize(
    "wrong",
    [
        {"train": ""},
        {"train": 3},
        {"train": "a", "validation": " "},
        {"train": "a", "validation": "self"},
        {"train": "self", "self_start": ""},
        {"train": "a", "validation_fraction": 1.0},
        {"train": "a", "repeated_opening": 0.5},
        {"train": "a", "repeated_opening": True},
        {"train": "a", "validation_fraction": -0.1},
        {"train": "a", "validation_fraction": "5%"},
        {"train": "a", "validation_fraction": True},
        {"train": "a", "text_column": ""},
        {"train": "a", "split": None},
        {"train": "a", "streaming": "yes"},
        {"train": "a", "pack": 1},
        {"train": "a", "max_documents": 0},
        {"train": "a", "max_documents": True},
        {"train": "a", "cache_dir": ""},
        {"train": "a", "seed": -1},
        {"train": "a", "seed": 0.5},
    ],
)
def test_wrong_field_is_named(wrong):
    name = list(wrong)[-1]
    with pytest.raises(RecipeError, match=rf"data\.{name} to be .*Set data\.{name}\."):
        DataConfig(**wrong)


def test_cache_path(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert DataConfig("a").cache_path == tmp_path / "linearard" / "blocks"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert DataConfig("a").cache_path == tmp_path / "home" / ".cache" / "linearard" / "blocks"
    assert DataConfig("a", cache_dir="~/x").cache_path == tmp_path / "home" / "x"
