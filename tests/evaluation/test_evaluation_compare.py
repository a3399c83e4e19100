import json
import math

import pytest
import torch

from linearard.errors import DataError, ModelError, RecipeError
from linearard.evaluation import EvaluationConfig, evaluate, prepare_inputs

LABELS = [{"context": f"Line {i}:", "choices": ["yes", "no"], "answer": i % 2} for i in range(4)]


@pytest.fixture
def config(tmp_path):
    lines = "\n".join(map(json.dumps, LABELS))
    (tmp_path / "quiz.jsonl").write_text(lines)
    (tmp_path / "words.jsonl").write_text('{"context": "The post came", "target": "late"}\n')
    return EvaluationConfig(
        perplexity_windows=[16, 64],
        perplexity_tokens=256,
        agreement_window=32,
        agreement_tokens=128,
        passkey_lengths=[300],
        passkey_depths=[0.0, 1.0],
        passkey_repeats=1,
        tasks_dir=tmp_path,
        retrieval_lengths=[300],
        retrieval_tasks=["single", "variables"],
        retrieval_depths=[0.5],
        retrieval_repeats=1,
        generation_prompts=3,
        generation_tokens=64,
        generation_prompt_tokens=8,
    )


NOTHING = {
    "perplexity_windows": [],
    "agreement_window": 0,
    "passkey_lengths": [],
    "tasks_dir": None,
}


def comparable(result):
    meta = {key: value for key, value in result["meta"].items() if key not in ("date", "seconds")}
    return {**result, "meta": meta}


def test_every_view_is_measured_with_everything(model, tokenizer, make_views, documents, config):
    log = []
    training = {"restore": [{"step": 1, "loss": 0.5}]}
    result = evaluate(
        model,
        tokenizer,
        make_views(model, log),
        documents,
        config,
        progress=False,
        training=training,
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result["views"]) == ["original", "stretched", "restored"]
    for name, view in result["views"].items():
        assert list(view["perplexity"]) == ["16", "64"]
        assert view["passkey"]["prompts"] == 2
        assert set(view["tasks"]) == {"quiz", "words"}
        assert view["task_average"]["tasks"] == 2 and "raw_retention" in view["task_average"]
        assert set(view["retrieval"]["tasks"]) == {"single", "variables"}
        assert (view["generation"]["outputs"], view["generation"]["tokens"]) == (3, 64)
        assert ("agreement" in view) is (name != "original")
    assert result["training"] == training
    assert all(log[i + 1] == f"/{log[i]}" for i in range(0, len(log), 2))  # never nested
    meta = result["meta"]
    assert meta["dtype"] == "float32" and meta["device"] == "cpu"
    assert meta["config"]["perplexity_windows"] == [16, 64]
    assert {"versions", "date", "commit", "model", "documents", "seconds"} <= meta.keys()


def test_a_seed_gives_the_same_result(model, tokenizer, make_views, documents, config):
    views = make_views(model)
    first, second = (
        comparable(evaluate(model, tokenizer, views, documents, config, progress=False))
        for _ in range(2)
    )
    assert first == second


def test_the_model_is_left_as_it_was(model, tokenizer, make_views, documents, config):
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    evaluate(model, tokenizer, make_views(model), documents, config, progress=False)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()  # still trains


def test_dropout_is_off(make_model, tokenizer, make_views, documents, config):
    model = make_model(attention_dropout=0.5).train()
    views = make_views(model)
    first, second = (
        comparable(evaluate(model, tokenizer, views, documents, config, progress=False))
        for _ in range(2)
    )
    assert first == second


def test_metrics_and_views_can_be_left_out(model, tokenizer, make_views, documents):
    views = make_views(model)
    nothing = evaluate(model, tokenizer, views, [], EvaluationConfig(**NOTHING), progress=False)
    assert nothing["views"] == {"original": {}, "stretched": {}, "restored": {}}
    assert "training" not in nothing
    options = {**NOTHING, "agreement_window": 32, "views": ["restored"]}
    one = evaluate(model, tokenizer, views, documents, EvaluationConfig(**options), progress=False)
    assert list(one["views"]) == ["restored"] and list(one["views"]["restored"]) == ["agreement"]


def test_views_must_be_known_and_begin_with_the_original(model, tokenizer, make_views, documents):
    views = make_views(model)
    with pytest.raises(RecipeError, match="original, stretched, restored, got restord"):
        evaluate(model, tokenizer, views, documents, EvaluationConfig(views=["restord"]))
    del views["original"]
    with pytest.raises(RecipeError, match="first view"):
        evaluate(model, tokenizer, views, documents, EvaluationConfig())


def test_bad_input_is_found_before_the_model_runs(model, tokenizer, make_views, documents, config):
    model.forward = model.model.forward = None
    config.tasks_dir = "absent"
    with pytest.raises(DataError, match="absent"):
        evaluate(model, tokenizer, make_views(model), documents, config)


def test_input_can_be_checked_before_there_is_a_model(tokenizer, documents, config):
    prepare_inputs(tokenizer, ["original", "restored"], documents, config)
    with pytest.raises(RecipeError, match="first view"):
        prepare_inputs(tokenizer, ["restored"], documents, config)
    with pytest.raises(DataError, match="at least 16 tokens"):
        prepare_inputs(tokenizer, ["original"], [], config)
    config.passkey_lengths = [10]
    with pytest.raises(DataError, match="pass-key length"):
        prepare_inputs(tokenizer, ["original"], documents, config)


def test_prepared_input_gives_the_same_result(model, tokenizer, make_views, documents, config):
    inputs = prepare_inputs(tokenizer, make_views(model), documents, config)
    given = evaluate(model, tokenizer, make_views(model), [], config, inputs=inputs)
    assert (
        given["views"] == evaluate(model, tokenizer, make_views(model), documents, config)["views"]
    )


def test_a_special_output_stage_is_refused(model, tokenizer, make_views, documents, config):
    plain = model.forward

    def doubled(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.logits = 2 * output.logits
        return output

    model.forward = doubled
    with pytest.raises(ModelError, match=r"LlamaForCausalLM, view 'original'"):
        evaluate(model, tokenizer, make_views(model), documents, config, progress=False)


def test_broken_weights_give_no_number_and_no_crash(
    model, tokenizer, make_views, documents, config
):
    config.passkey_lengths, config.tasks_dir, config.retrieval_lengths = [], None, []
    config.generation_prompts = 0
    result = evaluate(model, tokenizer, make_views(model), documents, config, progress=False)
    assert math.isfinite(result["views"]["original"]["perplexity"]["16"]["ppl"])
    model.lm_head.weight.data[:] *= 1e5  # too sure of itself: exp(loss) overflows
    result = evaluate(model, tokenizer, make_views(model), documents, config, progress=False)
    measured = result["views"]["original"]["perplexity"]["16"]
    assert measured["ppl"] is None and math.isfinite(measured["nll_sum"])
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("perplexity_windows", [1]),
        ("perplexity_windows", 512),
        ("perplexity_windows", [512, 512]),
        ("perplexity_tokens", 0),
        ("agreement_window", -1),
        ("agreement_window", True),
        ("agreement_tokens", "many"),
        ("passkey_lengths", ["2k"]),
        ("passkey_depths", [1.5]),
        ("passkey_depths", [[0.5]]),
        ("passkey_repeats", 0),
        ("task_limit", -1),
        ("task_split", "half"),
        ("task_split", []),
        ("texts", ["code"]),
        ("texts", {"code": 3}),
        ("texts", {"": "x.py"}),
        ("texts_tokens", 0),
        ("retrieval_lengths", [1]),
        ("retrieval_tasks", ["singel"]),
        ("retrieval_depths", [2]),
        ("retrieval_repeats", 0),
        ("generation_prompts", -1),
        ("generation_tokens", 63),
        ("generation_prompt_tokens", 1),
        ("batch_size", 0),
        ("seed", 1.5),
        ("views", "restored"),
    ],
)
def test_the_configuration_checks_itself(field, value):
    with pytest.raises(RecipeError, match=field):
        EvaluationConfig(**{field: value})


def test_what_is_new_costs_nothing_unless_asked_for():
    config = EvaluationConfig()
    assert not (config.texts or config.retrieval_lengths or config.generation_prompts)
    assert config.task_split == "all"


def test_every_field_is_described():
    import dataclasses

    assert all(f.metadata["help"] for f in dataclasses.fields(EvaluationConfig))
