"""A checkpoint by a stranger runs nothing, and writes nothing outside the chosen folder."""

import pytest
from strangers import edit, edit_recipe, refusal, snapshot

from linearard.cli.main import main
from small_run import EVALUATION


class TestCheckpoint:
    @pytest.mark.parametrize("command", ["evaluate", "export"])
    def test_code_beside_the_model_it_names(
        self, command, checkpoint, with_code, ran, tmp_path, capsys
    ):
        edit_recipe(checkpoint, "model", name=str(with_code), trust_remote_code=True)
        output = [tmp_path / "out"] if command == "export" else []
        line = refusal(capsys, command, checkpoint, *output)
        assert "without model.trust_remote_code" in line and "the command line" in line
        assert not ran.exists() and not (tmp_path / "out").exists()

    def test_the_user_may_say_no(self, checkpoint, with_code, ran, tmp_path, capsys):
        """The folder has a type that transformers knows: it loads without its own code."""
        edit_recipe(checkpoint, "model", name=str(with_code), trust_remote_code=True)
        flags = ["--quiet", "--evaluation", EVALUATION, "--model.trust_remote_code", "false"]
        cache = ["--data.cache_dir", str(tmp_path / "cache")]
        assert main(["evaluate", str(checkpoint), *flags, *cache]) == 0
        assert not ran.exists()

    def test_the_user_may_say_yes(self, checkpoint, with_code, ran, tmp_path):
        edit_recipe(checkpoint, "model", name=str(with_code), trust_remote_code=True)
        flags = ["--quiet", "--evaluation", EVALUATION, "--model.trust_remote_code", "true"]
        cache = ["--data.cache_dir", str(tmp_path / "cache")]
        assert main(["evaluate", str(checkpoint), *flags, *cache]) == 0
        assert ran.exists()

    def test_kernels_of_the_hub(self, checkpoint, capsys):
        edit_recipe(checkpoint, "model", attn_implementation="someone/kernel")
        line = refusal(capsys, "evaluate", checkpoint)
        assert "model.attn_implementation" in line and "kernels from the hub" in line

    def test_folders_that_it_names_are_not_written(self, checkpoint, tmp_path, monkeypatch, capsys):
        """Neither its token cache nor its output folder: only its own folder and the user's cache."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home-cache"))
        outside = tmp_path / "outside"
        edit_recipe(checkpoint, "data", cache_dir=str(outside / "cache"))
        edit_recipe(checkpoint, "", output_dir=str(outside / "run"))
        before = snapshot(tmp_path).keys()
        assert main(["evaluate", str(checkpoint), "--quiet", "--evaluation", EVALUATION]) == 0
        assert not outside.exists()
        new = [path for path in snapshot(tmp_path) if path not in before]
        allowed = (checkpoint / "evaluation", tmp_path / "home-cache")
        assert new and all(any(p.is_relative_to(a) for a in allowed) for p in new)

    @pytest.mark.parametrize("inside", ["", "report.html", ".evaluation.json.1"])
    def test_links_lead_nowhere(self, inside, checkpoint, tmp_path, capsys):
        victim = tmp_path / "victim"
        victim.mkdir()
        (victim / "file").write_text("precious")
        place = checkpoint / "evaluation"
        if inside:
            place.mkdir()
            (place / inside).symlink_to(victim / "file")
        else:
            place.symlink_to(victim)
        before = snapshot(victim)
        line = refusal(capsys, "evaluate", checkpoint, "--overwrite")
        assert "to lie within the checkpoint, got the link" in line
        assert snapshot(victim) == before

    def test_its_stages_are_not_run_and_not_read(self, checkpoint, tmp_path):
        """Whatever they ask for: packages, servers, folders, names unknown today."""
        asked = {"report_to": "all", "optim": "x", "hub_model_id": "a/b", "logging_dir": "/x"}
        edit_recipe(checkpoint, "stages", only=asked | {"from_a_later_version": 1})
        flags = ["--evaluation", EVALUATION, "--data.cache_dir", str(tmp_path / "cache")]
        assert main(["evaluate", str(checkpoint), "--quiet", *flags]) == 0

    def test_its_secrets_are_not_repeated(self, checkpoint, tmp_path):
        edit_recipe(checkpoint, "stages", only={"hub_token": "hf_SECRET"})
        edit_recipe(checkpoint, "model", revision="hf_" + "a1B2" * 9)
        flags = ["--evaluation", EVALUATION, "--data.cache_dir", str(tmp_path / "cache")]
        assert main(["evaluate", str(checkpoint), "--quiet", *flags]) == 0
        for path in (checkpoint / "evaluation").iterdir():
            assert b"hf_SECRET" not in path.read_bytes() and b"a1B2a1B2" not in path.read_bytes()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("base_model", None),
            ("base_model", {"name": 3, "fingerprint": "x"}),
            ("base_model", {"name": "x", "fingerprint": None}),
            ("rope", []),
            ("rope", {"scaling": {}, "tables": {"": {"inv_freq": [1.0]}}}),
            (
                "rope",
                {"scaling": {}, "tables": {"": {"inv_freq": ["1"], "attention_scaling": 1}}},
            ),
            ("rope", {"scaling": {}, "tables": {"": 7}}),
            ("adapter", "lora"),
            ("recipe", "smollm2-135m-64k"),
            ("recipe", [1]),
            ("stage", ["only"]),
        ],
    )
    def test_metadata_in_another_form(self, name, value, checkpoint, capsys):
        edit(checkpoint / "linearard.json", **{name: value})
        line = refusal(capsys, "evaluate", checkpoint)
        assert str(checkpoint / "linearard.json") in line and "Use another checkpoint" in line

    @pytest.mark.parametrize(
        "content",
        ["[" * 100_000, "{", "", "\x00", '{"format": 1' + "0" * 5000 + "}", "NaN"],
        ids=["deep", "cut", "empty", "binary", "long number", "no number"],
    )
    def test_metadata_that_is_no_json(self, content, checkpoint, capsys):
        (checkpoint / "linearard.json").write_text(content)
        line = refusal(capsys, "evaluate", checkpoint)
        assert "valid JSON" in line or "checkpoint format 1" in line
