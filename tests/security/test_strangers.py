"""What a stranger made - a checkpoint, a model folder, a task file, a sweep - runs nothing and writes nothing
outside the chosen folder; only the command line can allow more."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

import small_run
from linearard.cli.main import main
from linearard.errors import ModelError, RecipeError
from linearard.model import ModelConfig, load_config, load_model, load_tokenizer, written
from linearard.sweep import load_sweep
from linearard.train import load_recipe

EVALUATION = json.dumps(
    {
        "perplexity_windows": [48],
        "perplexity_tokens": 200,
        "agreement_window": 48,
        "agreement_tokens": 200,
        "passkey_lengths": [],
    }
)


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


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_recipe(checkpoint, section, **changes):
    """Change the recipe of a checkpoint, and the hashes with it, as a stranger can."""
    path = checkpoint / "linearard.json"
    metadata = json.loads(path.read_text())
    part = metadata["recipe"].setdefault(section, {}) if section else metadata["recipe"]
    part.update(changes)
    path.write_text(json.dumps(metadata))
    written.complete(checkpoint)


def snapshot(folder):
    return {p: p.is_file() and p.read_bytes() for p in sorted(Path(folder).rglob("*"))}


def refusal(capsys, *arguments):
    capsys.readouterr()
    assert main([*map(str, arguments), "--quiet"]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("linearard: error: expected ") and captured.out == ""
    return line


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


class TestModelFolder:
    def test_code_is_not_run(self, with_code, ran):
        config = ModelConfig(name=str(with_code), device="cpu", dtype="float32")
        load_model(config)
        assert not ran.exists()

    def test_code_that_is_needed_is_named(self, with_code, ran):
        edit(with_code / "config.json", model_type="unheard-of")
        with pytest.raises(ModelError) as error:
            load_config(ModelConfig(name=str(with_code)))
        assert "custom code" in error.value.got and "--model.trust_remote_code" in error.value.fix
        assert not ran.exists()

    @pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
    def test_kernels_of_the_hub(self, key, with_code):
        edit(with_code / "config.json", **{key: "someone/kernel"})
        with pytest.raises(ModelError, match="no kernels of the hub"):
            load_config(ModelConfig(name=str(with_code)))

    def test_an_adapter_over_another_model(self, with_code, base_folder):
        """transformers would load the model that the adapter names, with code of peft's choice."""
        (with_code / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": str(base_folder), "peft_type": "LORA"})
        )
        with pytest.raises(ModelError, match="an adapter over another model"):
            load_config(ModelConfig(name=str(with_code)))

    @pytest.mark.parametrize("method", ["fp8", "gptq", "torchao", "bitsandbytes", "mxfp4"])
    def test_packed_weights(self, method, with_code):
        """Their readers load kernels and packages that the folder chooses."""
        edit(with_code / "config.json", quantization_config={"quant_method": method})
        with pytest.raises(ModelError, match="dense weights"):
            load_config(ModelConfig(name=str(with_code)))

    @pytest.mark.parametrize(
        "changes",
        [
            {"vocab_size": 2**40},
            {"vocab_size": -5},
            {"hidden_size": 2**40},
            {"num_hidden_layers": 2**31},
            {"num_hidden_layers": 0},
            {"num_attention_heads": 0},
            {"num_key_value_heads": 0},
            {"head_dim": -1},
            {"max_position_embeddings": 2**70},
            {"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 0}},
            {
                "rope_parameters": {
                    "rope_type": "linear",
                    "rope_theta": 1e4,
                    "factor": float("inf"),
                }
            },
        ],
        ids=str,
    )
    def test_sizes_that_no_model_has(self, changes, with_code):
        """What is counted through or allocated before a weight is read."""
        edit(with_code / "config.json", **changes)
        with pytest.raises(ModelError):
            load_config(ModelConfig(name=str(with_code)))

    @pytest.mark.parametrize("name", ["../../outside", "a/b", "/tmp/x", "..\\x"])
    def test_chat_templates_stay_in_their_folder(self, name, with_code):
        templates = [{"name": name, "template": "x"}, {"name": "default", "template": "y"}]
        edit(with_code / "tokenizer_config.json", chat_template=templates)
        with pytest.raises(ModelError, match="names of files"):
            load_tokenizer(ModelConfig(name=str(with_code)))

    def test_pickled_weights_run_nothing(self, with_code, ran):
        import pickle

        class Payload:
            def __reduce__(self):
                return (open, (str(ran), "w"))

        (with_code / "model.safetensors").unlink()
        (with_code / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Payload()}))
        with pytest.raises(ModelError):
            load_model(ModelConfig(name=str(with_code), device="cpu", dtype="float32"))
        assert not ran.exists()

    def test_a_package_within_a_package_is_not_imported_to_find_it(
        self, tmp_path, ran, monkeypatch
    ):
        (tmp_path / "outer_package").mkdir()
        (tmp_path / "outer_package" / "__init__.py").write_text(f"open({str(ran)!r}, 'w')")
        (tmp_path / "outer_package" / "inner.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        for name in ("package:outer_package.inner", "package:outer_package"):
            with pytest.raises(ModelError):
                load_config(ModelConfig(name=name))
        assert not ran.exists()


class TestRecipeAndSweep:
    @pytest.fixture
    def recipe(self, tmp_path, with_code):
        return small_run.one_stage(tmp_path, with_code)

    ASKED = pytest.mark.parametrize(
        ("field", "value"),
        [
            ("model.trust_remote_code", True),
            ("model.attn_implementation", "someone/kernel"),
            ("model.attn_implementation", "kernels-community/flash-attn3@main:f"),
            ("stages.only.report_to", "wandb"),
            ("stages.only.report_to", ["tensorboard", "wandb"]),
            ("stages.only.report_to", "all"),
        ],
    )

    @staticmethod
    def set_field(recipe, field, value):
        *parents, last = field.split(".")
        for key in parents:
            recipe = recipe[key]
        recipe[last] = value

    @ASKED
    def test_a_recipe_cannot_allow_it(self, field, value, recipe, tmp_path, capsys):
        self.set_field(recipe, field, value)
        path = small_run.write_recipe(recipe, tmp_path / "r.yaml")
        for command in ("train", "plan"):
            line = refusal(capsys, command, path)
            assert f"without {field}, unless the command line" in line
            assert f"Give --{field}" in line
        assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()

    @ASKED
    def test_the_command_line_can(self, field, value, recipe, tmp_path):
        self.set_field(recipe, field, value)
        path = small_run.write_recipe(recipe, tmp_path / "r.yaml")
        load_recipe(path, {field: json.dumps(value)})
        whole = field.split(".")[0]
        load_recipe(path, {whole: json.dumps(recipe[whole])})

    def test_the_command_line_has_to_say_the_same(self, recipe, tmp_path):
        recipe["model"]["trust_remote_code"] = True
        path = small_run.write_recipe(recipe, tmp_path / "r.yaml")
        with pytest.raises(RecipeError, match="unless the command line"):
            load_recipe(path, {"model.revision": "main"})
        assert not load_recipe(path, {"model.trust_remote_code": "false"}).model.trust_remote_code

    @ASKED
    @pytest.mark.parametrize("place", ["base", "set", "arm", "grid"])
    def test_no_part_of_a_sweep_can(self, place, field, value, recipe, tmp_path, ran, capsys):
        sweep = {"base": recipe, "output_dir": str(tmp_path / "out"), "arms": {"a": {}}}
        if place == "base":
            self.set_field(recipe, field, value)
        elif place == "set":
            sweep["set"] = {field: value}
        elif place == "arm":
            sweep["arms"]["a"] = {field: value}
        else:
            sweep["grid"] = {field: [value]}
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(sweep, sort_keys=False))
        line = refusal(capsys, "sweep", path)
        assert f"without {field}, unless the command line" in line
        assert not ran.exists() and not (tmp_path / "out").exists()

    @pytest.mark.parametrize("place", ["base", "set", "stage", "part"])
    def test_a_sweep_keeps_no_cache_elsewhere(self, place, base_folder, tmp_path):
        """The user's own cache is used instead, and a line says so; the command line decides."""
        (tmp_path / "work").mkdir()
        recipe = small_run.one_stage(tmp_path / "work", base_folder)
        outside = str(tmp_path / "outside")
        elsewhere = {"cache_dir": outside}
        sweep = {"base": recipe, "output_dir": str(tmp_path / "work/out"), "arms": {"a": {}}}
        if place == "base":
            recipe["data"] |= elsewhere
        elif place == "set":
            sweep["set"] = {"data": elsewhere}
        elif place == "stage":
            recipe["stages"]["only"]["data"] = elsewhere
        else:
            part = {"window": 48, "sequences": 4, "data": elsewhere}
            recipe["stages"]["only"] = {"parts": {"p": part}}
        path = tmp_path / "work" / "sweep.yaml"
        path.write_text(yaml.safe_dump(sweep, sort_keys=False))
        found = load_sweep(path)
        (note,) = found.notes
        assert outside in note and "--data.cache_dir" in note
        for job in found.jobs:
            assert outside not in str([job.recipe.data, job.recipe.stages, job.recipe.source])
        allowed = load_sweep(path, {"data.cache_dir": outside})
        assert not allowed.notes and outside in str(allowed.jobs[0].recipe)

    @pytest.mark.parametrize("arm", ["../x", "/x", "a/b", "..", "~", ".hidden", "x\n"])
    def test_arms_stay_in_the_folder(self, arm, recipe, tmp_path, capsys):
        sweep = {"base": recipe, "output_dir": str(tmp_path / "out"), "arms": {arm: {}}}
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(sweep, sort_keys=False))
        assert "names of arms" in refusal(capsys, "sweep", path)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("stage", ["../x", "a/b", ".", "a b", "é", "a\n"])
    def test_stages_stay_in_the_folder(self, stage, recipe, tmp_path, capsys):
        recipe["stages"] = {stage: {"window": 48}}
        path = small_run.write_recipe(recipe, tmp_path / "r.yaml")
        assert "stage names of letters" in refusal(capsys, "train", path)


def test_names_of_tasks_are_text_in_the_report(trained, tmp_path):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    record = json.dumps({"context": "the ship", "choices": ["<b>x</b>", "sea"], "answer": 1})
    (tasks / "<img src=x onerror=alert(1)>$x_$.jsonl").write_text(f"{record}\n{record}\n")
    config = json.loads(EVALUATION) | {"tasks_dir": str(tasks)}
    out = str(tmp_path / "out")
    flags = ["--evaluation", json.dumps(config), "--output-dir", out, "--quiet"]
    cache = ["--data.cache_dir", str(tmp_path / "cache")]
    assert main(["evaluate", str(trained), *flags, *cache]) == 0
    page = Path(out, "report.html").read_text()
    assert "<img" not in page and "&lt;img" in page and "script" not in page


def test_a_hub_data_set_has_an_owner(tmp_path):
    """Names such as csv and pandas are readers of whatever files lie in the working folder."""
    from linearard.data import DataConfig
    from linearard.data.sources import open_source
    from linearard.errors import DataError

    for name in ("pandas", "csv", "json", "webdataset"):
        with pytest.raises(DataError, match="owner/name"):
            open_source(name, DataConfig(train=name), "train")
