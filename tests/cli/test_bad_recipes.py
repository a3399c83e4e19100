"""A wrong recipe or command line ends in one line that helps, exit code 2, and no weights loaded."""

import pytest
import torch

import small_run
import tiny
from linearard.cli.main import main

REMOVE = object()


def change(recipe: dict, name: str, value: object) -> None:
    *parents, last = name.split(".")
    for key in parents:
        recipe = recipe.setdefault(key, {})
    if value is REMOVE:
        del recipe[last]
    else:
        recipe[last] = value


#: Field, value, and words of the message.
FIELDS = {
    "misspelt section": (
        "modle",
        {},
        "a field of the recipe (model, rope, data",
        "Did you mean model?",
    ),
    "unknown section": ("zzz", {}, "got zzz", "Remove it"),
    "no section": ("rope", REMOVE, "a section 'rope'", "Add rope: to it"),
    "misspelt field": ("model.nmae", "x", "got model.nmae", "Did you mean model.name?"),
    "misspelt data field": ("data.txt_column", "x", "Did you mean data.text_column?"),
    "misspelt stage field": (
        "stages.restoration.windw",
        48,
        "stages.restoration.windw",
        "Did you mean stages.restoration.window?",
    ),
    "misspelt training argument": (
        "stages.restoration.lerning_rate",
        1e-3,
        "Did you mean stages.restoration.learning_rate?",
    ),
    "misspelt objective field": (
        "stages.restoration.objective.logit_wieght",
        1,
        "Did you mean stages.restoration.objective.logit_weight?",
    ),
    "misspelt evaluation field": (
        "evaluation.perplexity_window",
        [48],
        "Did you mean evaluation.perplexity_windows?",
    ),
    "unknown relation": (
        "stages.restoration.objective.relations",
        {"o": 1},
        "stages.restoration.objective.relations to be names among q, k, v, qk, got 'o'",
    ),
    "relations as a list": (
        "stages.restoration.objective.relations",
        ["q"],
        "objective.relations to be a mapping (each a number)",
        "got ['q']",
    ),
    "negative weight": (
        "stages.restoration.objective.lm_weight",
        -1,
        "lm_weight to be a weight from 0 to 1000000, got -1",
    ),
    "layer that is not there": (
        "stages.restoration.objective.layers",
        [0, 7],
        "stages.restoration.objective.layers to be indices from -3 to 2, got [7]",
    ),
    "held-out text of a stage": (
        "stages.restoration.data",
        {"validation_fraction": 0.0},
        "stages.restoration.data without 'validation_fraction'",
        "Set data.validation_fraction at the top",
    ),
    "no term at all": (
        "stages.restoration.objective.relations",
        {},
        "an objective with at least one weight above 0 in stage 'restoration', got none",
        "Set one of relations, hidden_weight, logit_weight, lm_weight",
    ),
    "section of the wrong type": ("model", "gpt", "model to be a mapping", "got 'gpt'"),
    "stage of the wrong type": ("stages.restoration", 3, "stages.restoration to be a mapping"),
    "stages as a list": ("stages", [{"window": 48}], "stages to be a mapping"),
    "text for a number": (
        "stages.restoration.learning_rate",
        "fast",
        "stages.restoration.learning_rate to be a number, got 'fast'",
    ),
    "fraction for a count": (
        "stages.restoration.window",
        48.5,
        "stages.restoration.window to be a whole number, got 48.5",
    ),
    "number for text": ("data.train", 3, "data.train to be text, got 3"),
    "truth for a number": ("adapter.r", True, "adapter.r to be a whole number, got True"),
    "text for a list": ("adapter.target_modules", "q_proj", "a list (each text) or null"),
    "window of zero": (
        "stages.restoration.window",
        0,
        "stages.restoration.window to be a whole number from 2 to",
        "got 0",
    ),
    "negative learning rate": (
        "stages.cpt.learning_rate",
        -1.0,
        "stages.cpt.learning_rate to be a number above 0, at most 1e+30, got -1.0",
    ),
    "infinite learning rate": ("stages.cpt.learning_rate", float("inf"), "learning_rate to be"),
    "no epoch": (
        "stages.cpt.num_train_epochs",
        0,
        "stages.cpt.num_train_epochs to be a number above 0",
    ),
    "seed below zero": ("seed", -1, "seed to be a whole number from 0 to", "got -1"),
    "no output folder": ("output_dir", None, "output_dir to be text, got None"),
    "stage name with a slash": (
        "stages.a/b",
        {"window": 48},
        "stage names of letters, digits, - and _, got 'a/b'",
    ),
    "unknown schedule": (
        "stages.cpt.lr_scheduler_type",
        "cosin",
        "stages.cpt.lr_scheduler_type to be one of linear, cosine",
        "got 'cosin'",
    ),
    "unknown optimizer": (
        "stages.cpt.optim",
        "adamax9",
        "stages.cpt.optim to be one of adamw_torch",
        "got 'adamax9'",
    ),
    "precision in a stage": ("stages.cpt.bf16", True, "without 'bf16'", "Set model.dtype"),
    "seed in a stage": ("stages.cpt.seed", 1, "without 'seed'", "at the top of the recipe"),
    "evaluation in a stage": (
        "stages.cpt.eval_strategy",
        "steps",
        "without 'eval_strategy'",
        "The section evaluation",
    ),
    "saving the best": ("stages.cpt.save_strategy", "best", "one of no, steps, epoch, got 'best'"),
    "losses of Trainer": ("stages.cpt.label_smoothing_factor", 0.1, "those of its objective"),
    "infinite alpha": ("adapter.alpha", float("inf"), "adapter.alpha to be a finite number"),
    "sharding": ("stages.cpt.fsdp", "full_shard", "without 'fsdp'", "torchrun"),
    "adapter kind": (
        "adapter.kind",
        "lorra",
        "adapter.kind to be one of lora, direct, got 'lorra'",
    ),
    "no stretch": ("rope.factor", 1, "a stretch factor above 1, got 1", "for instance 8"),
    "factor as text": ("rope.factor", "eight", "a stretch factor above 1, got 'eight'"),
    "unknown rope type": ("rope.rope_type", "yarm", "rope_type to be one of linear, dynamic, yarn"),
    "misspelt rope key": ("rope.facto", 4, "got 'facto'", "Did you mean 'factor'?"),
    "window beyond the native one": (
        "stages.restoration.window",
        65,
        "stages.restoration.window of at most 64, the model's native window, got 65",
        "the teacher is only right within its native window",
    ),
    "window beyond the stretched one": (
        "stages.cpt.window",
        257,
        "stages.cpt.window of at most 256, the model's stretched window, got 257",
        "raise rope.factor",
    ),
    "window beyond a stated native one": (
        "rope.original_max_position_embeddings",
        32,
        "stages.restoration.window of at most 32, the model's native window, got 48",
    ),
    "no such model": ("model.name", "/no/such/model", "no folder at /no/such/model"),
    "no such package": ("model.name", "package:no_such_model", "no such package", "Install it"),
    "no such gguf file": ("model.name", "nothing.gguf", "a GGUF file", "no file at nothing.gguf"),
    "unknown precision": (
        "model.dtype",
        "fp8",
        "model.dtype to be one of auto, bfloat16",
        "got 'fp8'",
    ),
    "half precision on the CPU": ("model.dtype", "float16", "bfloat16 or float32 on a CPU"),
    "unknown device": ("model.device", "quantum", "such as cuda, cuda:1 or cpu, got 'quantum'"),
    "no such text": ("data.train", "no/such/text.txt", "no/such/text.txt", "matches nothing"),
    "no such text to hold out": (
        "data.validation",
        "/no/such",
        "'/no/such', which matches nothing",
    ),
    "text of its own to hold out": (
        "data.validation",
        "self",
        "text that a model did not write",
        "./self",
    ),
    "text of its own in a stage without an end": (
        "stages.cpt",
        {"window": 48, "data": {"train": "self"}},
        "stages.cpt.sequences, for text that the model writes itself has no end",
    ),
    "nothing to hold out beside text of its own": (
        "data",
        {"train": "self"},
        "data.validation beside data.train: self, got none",
    ),
    "text of its own to evaluate on": (
        "evaluation",
        {"texts": {"a": "self"}, "agreement_window": 48, "perplexity_windows": [48]},
        "text that a model did not write",
    ),
    "one text for both": ("data.validation", "TRAIN", "held-out text that is not trained on"),
    "too many windows": (
        "stages.cpt.sequences",
        10_000,
        "10000 blocks of 96 tokens for train",
        "fewer blocks",
    ),
    "evaluation window too long for the text": (
        "evaluation.perplexity_windows",
        [50_000],
        "at least 50000 tokens",
    ),
    "unknown view": ("evaluation.views", ["restord"], "views among original", "got restord"),
    "no task files": ("evaluation.tasks_dir", "/no/such", "no such folder", "Set tasks_dir"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_a_wrong_field(case, recipe, tmp_path, refusal, no_model):
    name, value, *words = FIELDS[case]
    change(recipe, name, recipe["data"]["train"] if value == "TRAIN" else value)
    if name.startswith("evaluation."):
        recipe["evaluation"] = {
            "perplexity_windows": [48],
            "agreement_window": 0,
            "passkey_lengths": [],
        } | recipe["evaluation"]
    path = small_run.write_recipe(recipe, tmp_path / "recipe.yaml")
    line = refusal("train", str(path), "--resume")
    for word in words:
        assert word in line
    assert not list((tmp_path / "run").glob("stage*"))


def test_a_package_that_is_not_there(recipe, tmp_path, refusal, monkeypatch):
    """What only shows when the optimizer is made still is one line."""

    def train(self, **options):
        raise ImportError("You need to install `bitsandbytes`:\n`pip install bitsandbytes`")

    monkeypatch.setattr("linearard.train.trainer.RestorationTrainer.train", train)
    path = small_run.write_recipe(recipe, tmp_path / "recipe.yaml")
    line = refusal("train", str(path), "--resume")
    assert "the packages that stages.restoration needs, got You need to install" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for CUDA where there is none")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_where_there_is_none(device, recipe, tmp_path, refusal, no_model):
    recipe["model"]["device"] = device
    path = small_run.write_recipe(recipe, tmp_path / "recipe.yaml")
    line = refusal("train", str(path))
    assert f"a CUDA device '{device}', got a machine with 0 usable CUDA devices" in line
    assert "Set model.device to cpu or auto" in line


def test_a_model_without_rope(recipe, tmp_path, refusal, no_model):
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 258}
    GPT2LMHeadModel(GPT2Config(**shape)).save_pretrained(tmp_path / "gpt2")
    tiny.tiny_tokenizer().save_pretrained(tmp_path / "gpt2")
    recipe["model"]["name"] = str(tmp_path / "gpt2")
    path = small_run.write_recipe(recipe, tmp_path / "recipe.yaml")
    line = refusal("train", str(path))
    assert "rotary position embeddings (RoPE)" in line and "model_type 'gpt2'" in line
    assert "such as Llama" in line


def test_a_tokenizer_that_does_not_fit(recipe, tmp_path, refusal, no_model):
    base = tiny.save_tiny_base(
        tmp_path / "base", vocab_size=200, bos_token_id=0, eos_token_id=1, pad_token_id=1
    )
    recipe["model"]["name"] = str(base)
    path = small_run.write_recipe(recipe, tmp_path / "recipe.yaml")
    line = refusal("train", str(path))
    assert "a tokenizer of at most 200 tokens, the rows of the model's embedding" in line
    assert "got one of 258" in line


def test_a_folder_that_holds_no_model(recipe, tmp_path, refusal, no_model):
    (tmp_path / "empty").mkdir()
    recipe["model"]["name"] = str(tmp_path / "empty")
    path = small_run.write_recipe(recipe, tmp_path / "recipe.yaml")
    line = refusal("train", str(path))
    assert "that transformers can load" in line and str(tmp_path / "empty") in line


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({}, "none"),
        ({"a.txt": " \n"}, "the empty file"),
        ({"a.txt": "too short"}, "longest document"),
    ],
    ids=["empty folder", "empty text", "short text"],
)
def test_text_that_is_not_enough(content, word, recipe, tmp_path, refusal, no_model):
    folder = tmp_path / "text"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    recipe["data"]["train"] = str(folder)
    path = small_run.write_recipe(recipe, tmp_path / "recipe.yaml")
    assert word in refusal("train", str(path), "--resume")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {name: x\nrope: 3", ["valid YAML", "line 2"]),
        ("model:\n  name: a\n  name: b", ["valid YAML", "line 3", "'name' is given twice"]),
        ("", ["a mapping of sections", "got an empty file"]),
        ("- a\n- b", ["a mapping of sections", "got ['a', 'b']"]),
        ("\tmodel: 3", ["valid YAML", "line 1"]),
        (b"\xff\xfe\x00", ["a recipe file in YAML", "decode"]),
    ],
    ids=["unbalanced", "given twice", "empty", "list", "tab", "binary"],
)
def test_broken_yaml(text, words, tmp_path, refusal, no_model):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    line = refusal("train", str(path))
    for word in [str(path), *words]:
        assert word in line


@pytest.mark.parametrize("name", ["nowhere.yaml", "smollm2-135m-64", "/"])
def test_a_missing_recipe(name, refusal, no_model):
    line = refusal("train", name)
    assert "a recipe file in YAML" in line and f"got {name}" in line
    assert "smollm2-135m-64k" in line  # what there is
    assert ("Did you mean smollm2-135m-64k?" in line) == (name == "smollm2-135m-64")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--stages.cpt.windw", "9"], ["Did you mean stages.cpt.window?"]),
        (
            ["--stages.ctp.window", "9"],
            ["a field of stages (restoration, cpt), got stages.ctp", "mean stages.cpt?"],
        ),
        (["--stages.cpt.window"], ["a value after --stages.cpt.window", "end of the command"]),
        (["--rope.factor", "--overwrite"], ["a value after --rope.factor", "--overwrite"]),
        (["--stages.cpt.window={"], ["valid YAML in --stages.cpt.window"]),
        (["--model.name.x", "3"], ["model.name to be a section", "Check --model.name.x"]),
        (["--evaluation", "3"], ["evaluation to be a mapping"]),
        (["--report_to", "tensorbord"], ["report_to to be none, or", "Did you mean tensorboard?"]),
        (["--stages.cpt.report_to", "wandb"], ["stages.cpt without 'report_to'", "at the top"]),
        (["--evaluation.nonsense", "3"], ["perplexity_windows, ", "got evaluation.nonsense"]),
        (["--stages.ctp", "null"], ["a field of stages (restoration, cpt), got stages.ctp"]),
        (["--stages.cpt.parts.long", "null"], ["got stages.cpt.parts.long"]),
        (
            ["--stages.cpt", "null", "--stages.restoration=null"],
            ["a section 'stages' in the recipe, got none"],
        ),
    ],
)
def test_wrong_overrides(flags, words, recipe, tmp_path, refusal, no_model):
    path = small_run.write_recipe(recipe, tmp_path / "recipe.yaml")
    line = refusal("train", str(path), *flags)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "r.yaml", "--overwite"], ["unrecognized arguments: --overwite"]),
        (["train", "r.yaml", "--resume", "--overwrite"], ["not allowed with argument --resume"]),
        (["train"], ["required: recipe"]),
        (["trian", "r.yaml"], ["invalid choice: 'trian'", "train"]),
        ([], ["required: COMMAND"]),
        (["export", "run"], ["required: output"]),
        (["evaluate", "run", "extra"], ["unrecognized arguments: extra"]),
    ],
)
def test_wrong_command_lines(arguments, words, capsys, no_model):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "usage: linearard" in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("command", ["train", "restore", "sweep"])
def test_a_tracker_that_is_not_installed(command, recipe, tmp_path, refusal, no_model, monkeypatch):
    """Named with its package before the model's configuration is read."""
    monkeypatch.setattr("linearard.recipe.trackers.find_spec", lambda name: None)
    for place in ("train.run.load_config", "sweep.bench.load_config", "restore.run.gather_facts"):
        monkeypatch.setattr(f"linearard.{place}", None)
    sweep = {"base": recipe, "output_dir": str(tmp_path / "run"), "arms": {"a": {}}}
    path = small_run.write_recipe(sweep if command == "sweep" else recipe, tmp_path / "r.yaml")
    flags = [str(path)]
    if command == "restore":
        flags = [recipe["model"]["name"], "--window", "1k", "--output", str(tmp_path / "run")]
    line = refusal(command, *flags, "--report_to", "tensorboard")
    assert "the package tensorboard, for report_to: tensorboard" in line
    assert "pip install tensorboard" in line and not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_for_an_evaluation(trained, refusal, monkeypatch):
    monkeypatch.setattr("linearard.recipe.trackers.find_spec", lambda name: None)
    monkeypatch.setattr("linearard.evaluation.held_out_documents", None)
    line = refusal("evaluate", str(trained), "--report_to", "wandb")
    assert "the package wandb, for report_to: wandb" in line and "pip install wandb" in line
