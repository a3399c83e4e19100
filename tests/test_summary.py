"""No figure in the README was typed by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import figures, summary
from benchmarks.condense import condensed

ROOT = Path(__file__).parent.parent


def test_readme_and_summary_are_what_the_result_files_give():
    command = [sys.executable, "-m", "benchmarks.summary", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_figures_of_a_gpu_are_named_after_its_folder(tmp_path, monkeypatch):
    folder = tmp_path / "h100"
    folder.mkdir()
    run = {"seconds_per_sequence": 0.5, "peak_gib": 50.0, "mfu": 0.6, "relation_share": None}
    naive = {"seconds_per_sequence": 2.0, "peak_gib": 70.0}
    stage1 = {
        "runs": {"llama2-7b": run, "llama2-7b.small": run, "llama2-7b.naive": naive}
        | {"llama2-7b.stage2.32k.checkpointing": run},
        "ratios": {"llama2-7b": {"time": 4.0, "memory": 1.4}},
    }
    planner = {
        "within": {"cases": 7, "peak_10_percent": 6, "time_15_percent": 5},
        "too_large": {"one": {"out_of_memory": True}, "other": {"out_of_memory": False}},
    }
    steps = {"model": "smollm2-135m", "rank": 256}
    steps["cases"] = {"qk + v": {"ms": {"p50": 9}, "ratio_teacher": 1.5}}
    kernel = {"shapes": {"bf16.d64.t8": {"ms": 1, "ratio_cudnn": 0.8, "cudnn": {"p50": 1.1}}}}
    kernel["shapes"]["bf16.d64.t8"] |= {"any_order_ms": 0.9, "deterministic": {"ratio_cudnn": 0.9}}
    width = {"widths": {"64": {"untrained_kl": 1.5, "kl": {"0.001": 0.25}}}}
    kernel["shapes"]["bf16.d64.t8"] |= {"ratio_flash": None, "gemm_fraction": 0.5}
    files = {"stage1": stage1, "planner": planner, "training_step": steps, "relation_kl": kernel}
    files["width"] = width
    case = {"shape": "gemma3", "part": "long", "tokens": 65536, "optimizer": "muon"}
    case |= {"planned_gib": 31.0, "peak_gib": 30.0, "ratio": 1.033}
    files["peaks"] = {"within": {"cases": 1, "peak_10_percent": 1}, "cases": {"one": case}}
    case = {"ms": {"p50": 2.0}, "flash_ms": {"p50": 2.5}, "ratio": 0.8, "tflops": 300.0}
    files["attention"] = {"cases": {"gemma3-270m, window": case}}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.setattr(figures, "RESULTS", tmp_path)

    found = figures.collect()

    assert found["stage1.llama2_7b.h100.seconds_per_sequence"] == 0.5
    assert found["stage1.llama2_7b.h100.small.peak_gib"] == 50
    assert found["stage1.llama2_7b.h100.naive.time_ratio"] == 4
    assert "stage1.llama2_7b.h100.relation_share" not in found
    assert found["stage2.llama2_7b.h100.32k.checkpointing.mfu"] == 0.6
    assert found["planner.h100.peak_10_percent"] == 6
    assert (found["planner.h100.said_too_large"], found["planner.h100.ended"]) == (2, 1)
    assert found["step.smollm2_135m.h100.r256.qk_v.ratio_teacher"] == pytest.approx(1.5)
    assert (found["width.h100.64.untrained"], found["width.h100.64.rate_0.001"]) == (1.5, 0.25)
    assert found["kernel.h100.bf16.d64.t8.ratio_cudnn"] == pytest.approx(0.8)
    assert found["kernel.h100.bf16.d64.t8.deterministic.ratio_cudnn"] == pytest.approx(0.9)
    assert "kernel.h100.bf16.d64.t8.ratio_flash" not in found
    assert found["peaks.h100.gemma3.long.64k.muon.peak_gib"] == 30
    assert found["attention.h100.gemma3_270m_window.ratio"] == pytest.approx(0.8)
    tables = summary.tables(found)
    assert "h100.gemma3.long.64k.muon" in tables["peaks-long"]
    assert "300" in tables["attention"].splitlines()[-1]


def test_means_and_deviations_over_seeds(tmp_path, monkeypatch):
    for seed, ppl in enumerate([10.0, 12.0, 14.0]):
        views = {
            "original": {"perplexity": {"2048": {"ppl": 10.0}}},
            "restored": {"perplexity": {"2048": {"ppl": ppl}}},
        }
        stages = {"one": {"tokens": 5, "seconds": 1.0}, "two": {"tokens": 6, "seconds": 2.0}}
        place = tmp_path / "runs" / "best" / f"seed-{seed}"
        place.mkdir(parents=True)
        result = {"views": views, "stages": stages, "sweep": {"view": "restored"}}
        (place / "evaluation.json").write_text(json.dumps(result))
        (place / "recipe.yaml").write_text(f"seed: {seed}\ndata: {{train: /books}}\nrope: {{}}\n")
    arms = condensed(tmp_path / "runs")
    assert arms["best"]["recipe"] == {"data": {}, "rope": {}}
    (tmp_path / "h200").mkdir()
    (tmp_path / "h200" / "recovery.json").write_text(json.dumps({"arms": arms}))
    monkeypatch.setattr(figures, "RESULTS", tmp_path)

    found = figures.collect()

    key = "restoration.best.smollm2_135m_x8"
    assert (found[f"{key}.ppl_2k_ratio"], found[f"{key}.ppl_2k_ratio_sd"]) == (1.2, 0.2)
    assert (found[f"{key}.tokens"], found[f"{key}.seeds"]) == (11, 3)
    assert found["restoration.original.smollm2_135m_x8.ppl_2k"] == 10
    row = summary.tables(found)["recovery-long"].splitlines()[-1]
    assert "`smollm2-135m-64k`" in row and "1.200\u00a0±\u00a00.200" in row


def test_what_is_tracked_is_small():
    """It travels to every machine that measures; logs and single answers stay where they were made."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=summary.ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("no checkout")
    files = [summary.ROOT / name for name in listed.stdout.split("\0") if name]
    sizes = {path: path.stat().st_size for path in files if path.is_file()}
    assert sum(sizes.values()) < 5e6, sorted(sizes, key=sizes.get)[-10:]
