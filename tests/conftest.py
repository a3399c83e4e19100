"""Fixtures for the whole suite. Model makers are in `tiny.py`, which any test module may import."""

import os
from contextlib import nullcontext

import pytest

# bitsandbytes marks functions for torch.compile when peft imports it, which brings PyTorch's compiler into
# every process: 3 s, also of the processes that tests start. Nothing tested here is compiled.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import tiny

#: Modules of a minute and more, the longest first. A module runs in one process: begun last, it would run
#: on while the other cores have nothing to do.
_LONG = (
    "real/test_real_restoration.py",
    "restore/test_restore_runs.py",
    "train/test_killed_runs.py",
    "train/test_refusal.py",
    "restore/test_restore_plans.py",
)


def pytest_collection_modifyitems(items):
    """Begin with the long modules; the order is otherwise that of the files."""

    def place(item):
        name = "/".join(item.path.parts[-2:])
        return _LONG.index(name) if name in _LONG else len(_LONG)

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def quick_disk():
    """What tests write need not outlast a crash of the machine; a busy disk takes seconds a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def llama():
    """A tiny random Llama, new for each test."""
    return tiny.tiny_model()


@pytest.fixture
def restorable():
    """A tiny Llama stretched four times by linear interpolation, with LoRA of rank 4."""
    return tiny.tiny_restorable()


@pytest.fixture(scope="session")
def reader():
    """A process that reads exports with transformers alone, one for all tests."""
    from linearard.export import ReaderProcess

    with ReaderProcess() as process:
        yield process


@pytest.fixture
def one_reader(reader, monkeypatch):
    """Exports of a test are read back by the process that all tests share: one takes seconds to start."""
    monkeypatch.setattr("linearard.export.save.ReaderProcess", lambda: nullcontext(reader))


@pytest.fixture(scope="session")
def byte_tokenizer():
    """One token a byte."""
    return tiny.tiny_tokenizer()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    """A saved tiny Llama with its tokenizer: what a recipe's `model.name` can point to. Read only."""
    return tiny.save_tiny_base(tmp_path_factory.mktemp("base"))
