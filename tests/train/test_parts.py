"""A stage of several parts: what each step reads, and the invariants of one."""

import pytest

import small_run
import tiny
from linearard.data import DataConfig, token_blocks
from linearard.errors import DataError
from linearard.recipe import RestorationConfig, recipe_from_dict
from linearard.train import prepare_run
from linearard.train.trainer import RestorationTrainer
from linearard.train.windows import InterleavedParts

PARTS = {
    "short": {
        "window": 24,
        "sequences": 12,
        "batch_size": 2,
        "objective": {"relations": {"qk": 1, "v": 1}},
    },
    "far": {
        "window": 24,
        "sequences": 3,
        "objective": {
            "relations": {},
            "logit_weight": 1,
            "hidden_weight": 1,
            "skip_positions": True,
        },
        "data": {"repeated_passages": 0.3},
    },
    "long": {
        "window": 96,
        "sequences": 3,
        "objective": {
            "relations": {},
            "logit_weight": 1,
            "teacher_window": 16,
            "repeated_weight": 0.5,
        },
        "data": {"repeated_passages": 0.2},
    },
}


def several(folder, base, **stage):
    """A recipe whose only stage has three parts."""
    recipe = small_run.small_recipe(folder, base)
    plain = {"learning_rate": 1e-2, "warmup_steps": 1, "save_steps": 4}
    recipe["stages"] = {"only": plain | {"parts": PARTS} | stage}
    return recipe


def terms(entry):
    return {name for name in entry if "/" in name}


def test_parts_alternate_and_are_logged_apart(tmp_path, base_folder):
    run = small_run.train(several(tmp_path, base_folder))
    entries = [e for e in small_run.history(run, "stage1-only") if "loss" in e]
    read = ["".join(sorted({name.split("/")[0][0] for name in terms(e)})) for e in entries]
    assert "".join(read) == "sflssflssfls"
    wanted = {
        "s": {"short/relation_qk", "short/relation_v"},
        "f": {"far/logit_kl", "far/hidden"},
        "l": {"long/logit_kl", "long/recall"},
    }
    for part, entry in zip(read, entries, strict=True):
        assert terms(entry) == wanted[part]


def test_a_step_can_mix_parts(tmp_path, base_folder, capsys):
    """Four batches a step: two short ones, one of each other kind; the last windows fill no step."""
    recipe = several(tmp_path, base_folder, gradient_accumulation_steps=4)
    path = small_run.write_recipe(recipe, tmp_path / "recipe.yaml")
    assert small_run.main(["train", str(path), "--quiet"]) == 0
    entries = [e for e in small_run.history(tmp_path / "run", "stage1-only") if "loss" in e]
    assert len(entries) == 3 and all(len(terms(e)) == 6 for e in entries)
    tokens = 24 * 12 + 24 * 3 + 96 * 3
    assert f"stage only: 3 steps, {tokens} tokens" in capsys.readouterr().err


def test_recomputation_changes_nothing(tmp_path, base_folder):
    finals = [
        small_run.final_bytes(
            small_run.train(several(tmp_path / str(on), base_folder, gradient_checkpointing=on))
        )
        for on in (False, True)
    ]
    assert finals[0] == finals[1]


def test_a_runs_seed_draws_windows_whatever_seed_a_stage_has(tmp_path, base_folder):
    def read(seed):
        recipe = several(tmp_path / str(seed), base_folder)
        recipe["seed"] = seed
        recipe["stages"]["only"]["parts"] = {"short": PARTS["short"] | {"data": {"seed": 5}}}
        run = prepare_run(recipe_from_dict(recipe), progress=False)
        with run.claim:
            return run.texts["only"].windows.fingerprint

    assert read(0) != read(1)


@pytest.mark.parametrize("wrong", ["plain windows", "parts unasked", "evaluation", "length"])
def test_a_trainer_refuses_data_of_the_other_kind(wrong, tmp_path):
    restorable = tiny.tiny_restorable()
    text = str(small_run.write_text(tmp_path / "text", documents=1))
    data = DataConfig(train=text, cache_dir=str(tmp_path), validation_fraction=0.0)
    blocks = token_blocks(data, restorable.tokenizer, 24, split="train", count=4, progress=False)
    windows = InterleavedParts({"short": (blocks, 1)}, 1)
    unasked = wrong in ("parts unasked", "length")
    asked = {} if unasked else {"parts": {"short": {"window": 24}}}
    args = RestorationConfig(output_dir=str(tmp_path / "run"), use_cpu=True, **asked)
    train = blocks if wrong in ("plain windows", "length") else windows
    with pytest.raises(DataError, match="4096 tokens" if wrong == "length" else r"args\.parts"):
        RestorationTrainer(restorable, args, train, blocks if wrong == "evaluation" else None)


def test_parts_of_one_window_read_different_windows(tmp_path, base_folder):
    """And so do two stages."""
    from linearard.recipe import recipe_from_dict
    from linearard.train import prepare_run

    objective = {"relations": {}, "lm_weight": 1}
    part = {"window": 24, "sequences": 6, "objective": objective}
    recipe = several(tmp_path, base_folder, parts={"a": part, "b": part})
    recipe["stages"]["again"] = {"window": 24, "sequences": 6, "objective": objective}
    run = prepare_run(recipe_from_dict(recipe), progress=False)
    run.claim.close()
    mixed, again = run.texts["only"].windows, run.texts["again"].windows
    windows = [tuple(mixed.window(n).tolist()) for n in range(12)]
    windows += [tuple(again.window(n).tolist()) for n in range(6)]
    assert len(set(windows)) > 14  # drawn from a few hundred, each part anew
