"""Fixtures for the whole suite. Model makers are in `tiny.py`, which any test module may import."""

import gc
import os
import sys

import pytest

# bitsandbytes marks functions for torch.compile when peft imports it, which brings PyTorch's compiler into
# every process: 3 s, also of the processes that tests start. Nothing tested here is compiled.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import tiny

#: Modules of half a minute and more, the longest first. A module runs in one process: begun last, it would
#: run on while the other cores have nothing to do.
_LONG = (
    "real/test_real_restoration.py",
    "restore/test_restore_runs.py",
    "sweep/test_sweep_runs.py",
    "parallel/test_equal_processes.py",
    "train/test_trajectory.py",
    "ops/test_relation_kl_interpreted.py",
    "restore/test_restore_plans.py",
    "train/test_killed_runs.py",
    "train/test_signals.py",
    "cli/test_full_disks.py",
    "train/test_refusal.py",
    "train/test_self_generated_text.py",
    "train/test_weight_interpolation.py",
    "train/test_same_training.py",
    "cli/test_quiet.py",
    "docs/test_notebook.py",
    "ops/test_hopper_emulated.py",
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


@pytest.fixture(scope="session", autouse=True)
def reader():
    """A process that reads exports with transformers alone, one for all tests and every export in them.

    An export starts its own, which imports for seconds.
    """
    from linearard.export import ReaderProcess

    ask = ReaderProcess._ask

    def ask_the_one(process, request):
        return ask(one if process.python == one.python else process, request)

    with ReaderProcess() as one, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReaderProcess, "_ask", ask_the_one)
        yield one


@pytest.fixture(scope="session")
def imported():
    """How many modules there were when garbage was last told from what they hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "unfreeze", lambda: None)  # a sweep's end has it look through all again
        yield [0]
    gc.unfreeze()  # or the interpreter ends with complaints of what is left


@pytest.fixture(autouse=True)
def little_garbage(imported):
    """Training collects garbage, a third of a second each time with all that the libraries hold."""
    if len(sys.modules) > imported[0] + 20:
        imported[0] = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture
def llama():
    """A tiny random Llama, new for each test."""
    return tiny.tiny_model()


@pytest.fixture
def restorable():
    """A tiny Llama stretched four times by linear interpolation, with LoRA of rank 4."""
    return tiny.tiny_restorable()


@pytest.fixture(scope="session")
def byte_tokenizer():
    """One token a byte."""
    return tiny.tiny_tokenizer()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    """A saved tiny Llama with its tokenizer: what a recipe's `model.name` can point to. Read only."""
    return tiny.save_tiny_base(tmp_path_factory.mktemp("base"))
