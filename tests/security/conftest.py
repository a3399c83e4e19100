"""A trained run, a copy of its checkpoint, and a model with code beside it."""

import shutil

import pytest
from strangers import edit

import small_run


@pytest.fixture(scope="module")
def trained(base_folder, tmp_path_factory):
    """A finished run of one step."""
    folder = tmp_path_factory.mktemp("trained")
    return small_run.train(small_run.one_stage(folder, base_folder, sequences=1))


@pytest.fixture
def checkpoint(trained, tmp_path):
    """A copy of its final checkpoint."""
    return shutil.copytree(trained / "final", tmp_path / "checkpoint")


@pytest.fixture
def ran(tmp_path):
    """The file that the stranger's code would leave."""
    return tmp_path / "the-code-ran"


@pytest.fixture
def with_code(base_folder, tmp_path, ran):
    """A model folder with code of its own beside the weights."""
    folder = shutil.copytree(base_folder, tmp_path / "with_code")
    edit(folder / "config.json", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    (folder / "own.py").write_text(
        f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n"
        "import transformers\n"
        "class C(transformers.LlamaConfig): pass\n"
        "class M(transformers.LlamaForCausalLM): config_class = C\n"
    )
    return folder
