"""Tokens and passwords: refused in what a user writes, without being repeated; hidden in what is read."""

import pytest
import yaml

import small_run
from linearard.cli.main import main
from linearard.errors import shown, without_secrets
from linearard.recipe.secrets import hide_secrets

_MIXED = "aB3dE5fG7hJ9kL2mN4pQ6rS8tU0vW1xY3z"
TOKENS = {
    "hub": "hf_" + _MIXED,
    "hub, old": "api_org_" + _MIXED,
    "git": "ghp_" + _MIXED,
    "git, new": "github_pat_" + _MIXED,
    "lab": "glpat-" + _MIXED,
    "cloud": "AKIA" + "A1B2C3D4E5F6G7H8",
    "model service": "sk-" + _MIXED,
    "model service, project": "sk-proj-" + _MIXED,
    "chat": "xoxb-" + _MIXED,
    "maps": "AIza" + _MIXED,
    "web": "eyJ" + _MIXED + ".eyJ" + _MIXED + ".sig",
    "address": "https://user:" + _MIXED + "@example.org/x",
}
#: Where a user may have put one; the last part is the field's own name.
FIELDS = ["model.name", "model.revision", "data.train", "data.text_column", "adapter.kind"]
FIELDS += ["rope.rope_type", "stages.cpt.optim", "report_to", "stages.cpt.nothing"]
FIELDS += ["evaluation.tasks_dir", "output_dir", "stages.cpt.lr_scheduler_kwargs"]


@pytest.fixture
def path(tmp_path, base_folder):
    recipe = small_run.small_recipe(tmp_path, base_folder)
    return small_run.write_recipe(recipe, tmp_path / "recipe.yaml")


def refusal(capsys, *arguments):
    capsys.readouterr()
    assert main([*map(str, arguments), "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("kind", TOKENS)
def test_every_kind_in_every_field(kind, path, tmp_path, capsys):
    token = TOKENS[kind]
    secret = _MIXED if _MIXED in token else token
    for name in FIELDS:
        value = f"{{a: ['{token}']}}" if name.endswith("kwargs") else f"'{token}'"
        line = refusal(capsys, "train", path, f"--{name}={value}")
        assert secret not in line
        assert "a recipe without secrets" in line and name in line and "HF_TOKEN" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name",
    ["hub_token", "push_to_hub_token", "token", "api_key", "secret", "password", "access_key"],
)
def test_fields_that_are_meant_for_one(name, path, tmp_path, capsys):
    """Whatever it looks like, and whether there is such a field or not."""
    for where in ("stages.cpt", "model", "evaluation"):
        line = refusal(capsys, "train", path, f"--{where}.{name}=swordfish")
        assert "swordfish" not in line and f"{where}.{name}" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["base", "set", "arms", "grid", "command line"])
def test_sweeps(place, path, tmp_path, capsys):
    """Also where no arm keeps it: the folder of a sweep holds a copy of its file."""
    token = TOKENS["hub"]
    recipe = yaml.safe_load(path.read_text())
    sweep = {"base": recipe, "output_dir": str(tmp_path / "out"), "arms": {"a": {"rope": {}}}}
    flags = []
    if place == "base":
        recipe["model"]["revision"] = token
    elif place == "command line":
        flags = ["--model.revision", token]
    elif place == "arms":
        sweep["arms"] = {"a": {"stages": None}, "b": {"stages.cpt.hub_token": token}}
    else:
        sweep[place] = {"model.revision": [token] if place == "grid" else token}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep))
    line = refusal(capsys, "sweep", file, *flags)
    assert token not in line and "without secrets" in line
    assert not (tmp_path / "out").exists()


def test_what_only_looks_a_little_like_one_is_left():
    plain = {
        "data": {"train": "/data/hf_datasets/books", "validation": "sk-learn/docs"},
        "evaluation": {"perplexity_tokens": 7, "texts": {"hf_code": "src"}, "agreement_tokens": 3},
        "model": {"name": "owner/hf_model-0123456789", "revision": "0123456789abcdef0123456789"},
        "where": "https://example.org:8080/a@b",
    }
    assert hide_secrets(plain) == plain


def test_hidden_wherever_it_stands():
    token = TOKENS["hub"]
    tree = {"a": [f"x {token} y"], "hub_token": "swordfish", "b": {token: {"password": "p"}}}
    hidden = hide_secrets(tree)
    assert token not in str(hidden) and "swordfish" not in str(hidden)
    assert hidden["a"] == ["x [hidden] y"] and hidden["b"]["[hidden]"] == {"password": "[hidden]"}


def test_messages_hide_it_too():
    for token in TOKENS.values():
        assert _MIXED not in shown(token) and _MIXED not in without_secrets(f"got {token!r}")


@pytest.mark.parametrize(("name", "fix"), [("folder", "files of the folder"), ("hub", "login")])
def test_a_login_helps_with_the_hub_alone(name, fix, tmp_path, monkeypatch):
    from linearard.errors import ModelError
    from linearard.model import ModelConfig, load_config

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    where = str(tmp_path / "broken") if name == "folder" else "nobody-here/nothing"
    with pytest.raises(ModelError) as error:
        load_config(ModelConfig(name=where))
    assert fix in error.value.fix and ("login" in error.value.fix) == (name == "hub")
