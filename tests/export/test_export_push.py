"""`linearard push`: what is uploaded, to a stand-in for the hub, and what is refused before."""

import json
import shutil

import pytest
from byte_pairs import ROWS, byte_pairs
from hub_stub import TOKEN, Hub

import tiny
from linearard.cli.main import main
from linearard.errors import CheckpointError, RecipeError
from linearard.export import export_model, plan_push, push_export
from linearard.export.gguf import GgufOptions

#: How huggingface_hub itself sends large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    found = tiny.tiny_restorable(changes={"vocab_size": ROWS})
    found.tokenizer = byte_pairs()
    tiny.perturb_adapter(found)
    folder = tmp_path_factory.mktemp("push") / "out"
    export_model(found, folder, "gguf", gguf=GgufOptions("f32"))
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy that a test may damage, with a file beside it that is none of the export's."""
    shutil.copytree(exported, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("private")
    return tmp_path / "out"


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with Hub() as found:
        yield found


def test_all_that_the_export_lists_arrives_and_nothing_else(folder, hub):
    plan = plan_push(folder, "me/tiny-256")
    address = push_export(plan, private=True, endpoint=hub.endpoint, token=TOKEN)
    assert address == f"{hub.endpoint}/me/x/commit/1"
    assert hub.repositories == {"me/tiny-256": True}
    listed = json.loads((folder / "linearard_export.json").read_text())["files"]
    names = {*listed, "linearard_export.json"}
    assert {"README.md", "Modelfile"} < names
    assert hub.files == {f"main/{name}": (folder / name).read_bytes() for name in names}
    assert len(hub.objects) == 1  # the GGUF went as an object of its own
    assert plan.files == {name: (folder / name).stat().st_size for name in sorted(names)}


def test_a_branch(folder, hub):
    push_export(plan_push(folder, "me/x"), branch="trial", endpoint=hub.endpoint, token=TOKEN)
    assert "/api/models/me/x/branch/trial" in hub.calls
    assert all(name.startswith("trial/") for name in hub.files)


def test_a_dry_run_shows_files_sizes_and_card_and_asks_nobody(folder, hub, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", str(folder), "--to", "me/x", "--dry-run"]) == 0
    said = capsys.readouterr()
    size = (folder / "Modelfile").stat().st_size
    assert f"{size:>16,}  Modelfile\n" in said.out and "files, " in said.out
    assert (folder / "README.md").read_text().rstrip() in said.out
    assert "notes.txt" not in said.out and TOKEN not in said.out + said.err
    assert hub.calls == []


@pytest.mark.parametrize(
    ("repository", "token", "words"),
    [
        ("me/x", "hf_" + "w" * 30, r"no token, or one that the hub does not know \(HTTP 401\)"),
        ("theirs/x", TOKEN, r"a token that may not write there \(HTTP 403\)"),
    ],
)
def test_a_refusal_is_told_in_words_without_the_token(repository, token, words, folder, hub):
    plan = plan_push(folder, repository)
    with pytest.raises(CheckpointError, match=words) as error:
        push_export(plan, endpoint=hub.endpoint, token=token)
    assert "hf auth login" in str(error.value) and token not in str(error.value)
    assert hub.files == {} and hub.objects == {}


def test_no_hub_is_told_in_words(folder, hub):
    plan, closed = plan_push(folder, "me/x"), hub.endpoint
    hub.shutdown()
    hub.server_close()
    with pytest.raises(CheckpointError, match=r"expected the hub to take me/x, got .*refused"):
        push_export(plan, endpoint=closed, token=TOKEN)


@pytest.mark.parametrize("name", ["x", "a/b/c", "me/..", "me/a b", "", "https://hub/me/x"])
def test_names_of_no_repository(name, folder):
    with pytest.raises(RecipeError, match="OWNER/NAME"):
        plan_push(folder, name)


def test_what_was_not_proven_or_was_changed_is_refused(folder, tmp_path):
    with pytest.raises(CheckpointError, match="linearard export RUN OUT"):
        plan_push(tmp_path, "me/x")
    with (folder / "Modelfile").open("a") as file:
        file.write("PARAMETER temperature 2\n")
    with pytest.raises(CheckpointError, match="as they were when the export was checked, got Mod"):
        plan_push(folder, "me/x")
    (folder / "Modelfile").unlink()
    with pytest.raises(CheckpointError, match="Modelfile: missing"):
        plan_push(folder, "me/x")


def test_paths_of_this_machine_are_told_or_refused(folder):
    path = folder / "linearard_export.json"
    about = json.loads(path.read_text()) | {"base_model": "/home/somebody/base"}
    path.write_text(json.dumps(about))
    assert any("/home/somebody/base" in note for note in plan_push(folder, "me/x").notes)
    path.write_text(json.dumps(about | {"form": "adapter"}))
    with pytest.raises(RecipeError, match="an adapter over a base model of the hub"):
        plan_push(folder, "me/x")
