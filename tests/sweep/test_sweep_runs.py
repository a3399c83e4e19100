"""Sweeps through the real command line: results, failures, resuming, several processes."""

import json
import multiprocessing
import os
import re
import shutil
import threading
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

import small_run
from forked import context_of_forks
from linearard.cli.main import main
from linearard.model import written
from linearard.sweep import load_sweep
from linearard.sweep.bench import Bench
from linearard.sweep.folder import unfinished
from linearard.sweep.workers import Crew, _one_gpu
from linearard.train import self_generated_text

EVALUATION = {
    "perplexity_windows": [32, 96],
    "perplexity_tokens": 256,
    "agreement_window": 32,
    "agreement_tokens": 256,
    "passkey_lengths": [],
}
TASKS = {
    "quiz": [
        {"context": f"Line {i}:", "choices": ["yes", "no"], "answer": i % 2} for i in range(9)
    ],
    "words": [{"context": f"The post of {word} was", "target": "late"} for word in "abcde"],
}
YARN = {"rope_type": "yarn", "factor": 4}
#: The learning rate makes the first step infinite, which the second step is refused for.
ARMS = {
    "linear": {},
    "yarn": {"rope": YARN, "stages.cpt": None},
    "broken": {"stages.restoration": {"learning_rate": 1e30, "max_grad_norm": 1e30}},
    "untrained": {"rope": YARN, "stages": None},
}


def write_sweep(folder: Path, base: dict, **fields) -> Path:
    """A sweep file over a recipe; its output folder is `out` beside it."""
    base = base | {"data": base["data"] | {"cache_dir": str(folder / "cache")}}
    values = {"base": base, "output_dir": str(folder / "out"), "seeds": [0, 1]} | fields
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def sweep(path: Path, *flags: str) -> int:
    return main(["sweep", str(path), *flags])


def result(folder: Path, arm: str, seed: int = 0) -> dict:
    return json.loads((folder / arm / f"seed-{seed}" / "evaluation.json").read_text())


def states(folder: Path) -> dict[str, int]:
    """When each result was written."""
    return {
        str(path.parent.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.glob("*/seed-*/evaluation.json")
    }


@pytest.fixture
def forks(monkeypatch):
    """Workers are forked from a process that has imported what they need; a new one imports for long."""
    context = context_of_forks(small_run.environment())
    monkeypatch.setattr("linearard.sweep.workers.get_context", lambda method: context)


@pytest.fixture(scope="module")
def base(tmp_path_factory, base_folder):
    """A recipe of two stages with dropout, as plain data."""
    folder = tmp_path_factory.mktemp("sweep-base")
    (folder / "tasks").mkdir()
    for name, records in TASKS.items():
        (folder / "tasks" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    evaluation = EVALUATION | {"tasks_dir": str(folder / "tasks")}
    return small_run.small_recipe(folder, base_folder, evaluation=evaluation)


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """A sweep with a failing and an untrained arm, its file and exit code."""
    path = write_sweep(tmp_path_factory.mktemp("sweep"), base, arms=ARMS)
    return path, sweep(path, "--quiet")


@pytest.fixture(scope="module")
def out(finished):
    """Its output folder."""
    return finished[0].parent / "out"


class TestResults:
    def test_it_goes_on_after_a_failure_and_says_so(self, finished, out):
        assert finished[1] == 1
        done = ["linear/seed-0", "linear/seed-1", "untrained/seed-0", "yarn/seed-0", "yarn/seed-1"]
        assert sorted(states(out)) == done
        failed = json.loads((out / "sweep.json").read_text())["failed"]
        assert [(one["arm"], one["seed"]) for one in failed] == [("broken", 0), ("broken", 1)]
        assert all("finite losses and gradients, got" in one["message"] for one in failed)

    @pytest.mark.parametrize(("arm", "seed"), [("linear", 1), ("yarn", 0)])
    def test_they_are_those_of_a_run_by_itself(self, arm, seed, base, out, tmp_path):
        """Bit for bit, though the model was copied, and others were trained before in the process."""
        changes = {"output_dir": str(tmp_path / "run"), "seed": seed}
        recipe = base | changes | ({"rope": YARN} if arm == "yarn" else {})
        if arm == "yarn":
            recipe["stages"] = {"restoration": recipe["stages"]["restoration"]}
        alone = json.loads((small_run.train(recipe) / "evaluation.json").read_text())
        swept = result(out, arm, seed)
        for stage in recipe["stages"]:
            logs = [
                [entry["loss"] for entry in found["training"][stage] if "loss" in entry]
                for found in (alone, swept)
            ]
            assert len(logs[0]) > 3 and logs[0] == logs[1]
            assert swept["stages"][stage]["tokens"] == alone["stages"][stage]["tokens"]
        assert swept["views"] == alone["views"]
        assert swept["views"]["restored"]["task_average"]["answer_kl_ci95"]

    def test_the_recipe_of_a_run_trains_it_again(self, out):
        """It is written whole, with the seed and the arm's changes."""
        recipe = yaml.safe_load((out / "yarn" / "seed-1" / "recipe.yaml").read_text())
        assert recipe["seed"] == 1 and recipe["rope"] == YARN
        assert list(recipe["stages"]) == ["restoration"]

    def test_an_untrained_arm_is_the_stretched_model(self, out):
        found = result(out, "untrained")
        assert list(found["views"]) == ["original", "stretched"]
        trained = result(out, "yarn")["views"]
        assert found["views"] == {view: trained[view] for view in found["views"]}
        assert found["training"] == {} and found["sweep"]["view"] == "stretched"

    def test_untrained_views_are_measured_once(self, out):
        """The original for all, the stretched one for each of the two scalings."""
        names = sorted(path.name.partition("-")[0] for path in (out / ".views").glob("*.json"))
        assert names == ["original", "stretched", "stretched"]

    def test_no_weights_are_left(self, out):
        assert not [path for path in out.rglob("*") if path.suffix in (".safetensors", ".pt")]
        assert not list(out.glob("*/*/stage*"))

    def test_the_files_agree_with_the_results(self, out):
        content = json.loads((out / "sweep.json").read_text())
        assert [(row["arm"], row["seed"]) for row in content["rows"]] == [
            ("linear", 0),
            ("linear", 1),
            ("yarn", 0),
            ("yarn", 1),
            ("untrained", 0),
        ]
        for row in content["rows"]:
            view = result(out, row["arm"], row["seed"])["views"][row["view"]]
            assert row["KL to original (nats)"] == view["agreement"]["kl"]
            assert row["top-1 agreement"] == view["agreement"]["top1"]
            assert row["perplexity, 96 tokens"] == view["perplexity"]["96"]["ppl"]
        assert [row["tokens"] for row in content["rows"]] == [1920, 1920, 1152, 1152, 0]
        assert content["original"]["perplexity, 32 tokens"] > 0 and content["missing"] == []

    def test_the_table_has_means_and_deviations(self, out):
        lines = (out / "sweep.md").read_text().splitlines()
        table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:7]]
        header, _, original, linear, yarn, broken, untrained = table
        column = header.index("perplexity, 32 tokens")
        ppl = [
            result(out, "linear", s)["views"]["restored"]["perplexity"]["32"]["ppl"] for s in (0, 1)
        ]
        mean, half = (ppl[0] + ppl[1]) / 2, abs(ppl[0] - ppl[1]) / 2
        shown, deviation = map(float, linear[column].split(" ± "))
        assert shown == pytest.approx(mean, abs=0.06)
        assert deviation == pytest.approx(2**0.5 * half, abs=0.06)
        assert [line[1] for line in (original, linear, yarn, broken, untrained)] == [
            "original",
            *ARMS,
        ]
        assert broken[2] == "0 of 2" and untrained[2] == "1" and "±" not in untrained[column]
        assert sum(line.startswith("failed: broken, seed ") for line in lines) == 2

    def test_the_page_loads_nothing(self, out):
        page = (out / "sweep.html").read_text()
        assert page.count("<svg") == 2 and "broken" in page
        assert not re.search(r'(?:src|href)="(?!#)', page)

    def test_the_table_alone(self, finished, out, capsys):
        """Rebuilt from what is there; nothing runs, and nothing else is touched."""
        before = states(out)
        for name in ("sweep.json", "sweep.md", "sweep.html"):
            (out / name).unlink()
        capsys.readouterr()
        assert sweep(finished[0], "--table", "--quiet") == 1
        captured = capsys.readouterr()
        assert captured.out.splitlines()[0].split()[:3] == ["#", "arm", "runs"]
        assert captured.err.count("failed: broken") == 2
        assert all((out / name).exists() for name in ("sweep.json", "sweep.md", "sweep.html"))
        assert states(out) == before

    def test_no_table_of_no_sweep(self, finished, tmp_path, capsys):
        nowhere = tmp_path / "nowhere"
        assert sweep(finished[0], "--table", "--output-dir", str(nowhere)) == 2
        assert "--output-dir it ran with" in capsys.readouterr().err
        assert not nowhere.exists()


class TestAgain:
    """What happens to an earlier sweep."""

    FLAGS = (
        "--stages.restoration.sequences=4",
        "--evaluation.perplexity_windows=[32]",
        "--evaluation.tasks_dir=null",
    )

    @pytest.fixture
    def path(self, base, tmp_path):
        arms = {"a": {"stages": None}, "b": {"stages.cpt": None, "rope": YARN}}
        return write_sweep(tmp_path, base, arms=arms, seeds=[0])

    def test_finished_runs_are_skipped_and_changed_ones_refused(self, path, capsys):
        out = path.parent / "out"
        assert sweep(path, *self.FLAGS) == 0
        printed = capsys.readouterr().err.splitlines()
        lines = [line for line in printed if line.startswith("[")]
        assert len(lines) == 2
        assert re.fullmatch(r"\[1/2\] a, seed 0: [\d.]+ s, KL [\d.]+, perplexity [\d.,]+", lines[0])
        first = states(out)

        assert sweep(path, *self.FLAGS, "--quiet") == 2
        assert "with an earlier sweep" in capsys.readouterr().err

        content = yaml.safe_load(path.read_text())
        content["arms"]["b"]["rope"] = {"rope_type": "linear", "factor": 2}
        content["arms"]["c"] = {"stages": None}
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        assert sweep(path, *self.FLAGS, "--resume", "--quiet") == 2
        line = capsys.readouterr().err
        assert "arm 'b' as " in line and "rope.rope_type: 'yarn' -> 'linear'" in line
        assert "--resume --overwrite to replace what has changed" in line
        assert states(out) == first

        assert sweep(path, *self.FLAGS, "--resume", "--overwrite", "--quiet") == 0
        second = states(out)
        assert second["a/seed-0"] == first["a/seed-0"]
        assert second["b/seed-0"] > first["b/seed-0"] and "c/seed-0" in second
        assert result(out, "b")["views"] != result(out, "a")["views"]

        assert sweep(path, *self.FLAGS, "--overwrite", "--quiet") == 0
        third = states(out)
        assert all(third[name] > second[name] for name in second)

    def test_a_failed_run_is_tried_again(self, path, capsys):
        """The second run's folder is in use the first time."""
        out = path.parent / "out"
        (out / "b" / "seed-0").mkdir(parents=True)
        small_run.write_recipe({}, out / "sweep.yaml")
        written.note(out, ["sweep.yaml"])
        with FileLock(out / "b" / "seed-0" / ".lock"):
            assert sweep(path, *self.FLAGS, "--resume", "--quiet") == 1
        assert "failed: b, seed 0: expected an output folder in which nobody else" in (
            capsys.readouterr().err
        )
        first = states(out)
        assert list(first) == ["a/seed-0"]
        assert sweep(path, *self.FLAGS, "--resume", "--quiet") == 0
        assert "failed:" not in capsys.readouterr().err
        assert states(out).keys() == {"a/seed-0", "b/seed-0"}
        assert states(out)["a/seed-0"] == first["a/seed-0"]
        assert not list(out.glob("*/*.failed.json"))

    def test_a_killed_sweep_goes_on(self, path):
        """SIGKILL after the first result: what is finished stays, the rest gives the same bits."""
        out = path.parent / "out"
        with small_run.start("sweep", str(path), "--quiet", *self.FLAGS) as running:
            while running.poll() is None and not states(out):
                time.sleep(0.002)
            running.kill()
            errors = running.outputs()[1]
        first = states(out)
        assert list(first) == ["a/seed-0"], errors
        # In processes like the killed one: products round by the number of threads.
        again = small_run.launch("sweep", str(path), *self.FLAGS, "--resume", "--quiet")
        assert again.returncode == 0, again.stderr
        assert states(out).keys() == {"a/seed-0", "b/seed-0"}
        assert states(out)["a/seed-0"] == first["a/seed-0"]
        other = path.parent / "other"
        flags = (*self.FLAGS, "--output-dir", str(other), "--quiet")
        whole = small_run.launch("sweep", str(path), *flags)
        assert whole.returncode == 0, whole.stderr
        for arm in ("a", "b"):
            assert result(out, arm)["views"] == result(other, arm)["views"]

    def test_checkpoints_where_they_are_wanted(self, base, tmp_path):
        path = write_sweep(tmp_path, base, arms={"a": {}}, seeds=[0], keep_checkpoints=True)
        assert sweep(path, *self.FLAGS, "--quiet") == 0
        run = tmp_path / "out" / "a" / "seed-0"
        assert (run / "final" / "adapter_model.safetensors").exists()
        assert len(list(run.glob("stage2-cpt/checkpoint-*"))) == 2


@pytest.mark.usefixtures("forks")
def test_a_worker_that_dies_fails_its_run_alone(base, out, tmp_path, capfd):
    """Killed at its start; another takes its place, and the rest gives the bits of one process."""
    yarn = ARMS["yarn"] | {"stages.restoration.dataloader_num_workers": 1}  # and may have its own
    path = write_sweep(tmp_path, base, arms={"untrained": ARMS["untrained"], "yarn": yarn})
    plan = load_sweep(path)
    tasks = unfinished(plan, resume=False, overwrite=False)
    assert len(tasks) == 3

    def kill_first():
        while not (children := multiprocessing.active_children()):
            time.sleep(0.001)
        children[0].kill()

    killer = threading.Thread(target=kill_first)
    killer.start()
    with Crew(2, plan.folder, keep_checkpoints=False) as crew:
        outcomes = list(crew.run(tasks, {}))
    killer.join()
    assert {str(outcome.job) for outcome in outcomes} == {str(task.job) for task in tasks}
    (failed,) = [outcome for outcome in outcomes if outcome.message]
    assert failed.message == "the worker process ended with code -9"
    assert json.loads(failed.job.failure_note.read_text())["message"] == failed.message
    for outcome in outcomes:
        if not outcome.message:
            job = outcome.job
            found = result(tmp_path / "out", job.arm, job.seed)
            assert found["views"] == result(out, job.arm, job.seed)["views"]
    assert not multiprocessing.active_children()
    # The others end without a word, but for what bitsandbytes says while transformers imports it.
    words = capfd.readouterr().err.splitlines()
    assert not [line for line in words if "gemm_4bit_forward" not in line]


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_arms_share_what_the_original_has_written(workers, base, tmp_path, monkeypatch):
    """A text for each seed, in one process and in two."""
    calls, write = [], self_generated_text.write_documents

    def watched(*arguments, **options):
        calls.append(arguments)
        return write(*arguments, **options)

    monkeypatch.setattr(self_generated_text, "write_documents", watched)
    cache = tmp_path / "cache"
    data = {"data.cache_dir": str(cache), "stages.restoration.data": {"train": "self"}}
    arms = {"linear": {}, "yarn": {"rope": YARN, "adapter.r": 2}}
    path = write_sweep(tmp_path, base, arms=arms, set={**data, "stages.cpt": None})
    assert sweep(path, "--quiet", "--workers", workers) == 0
    texts = {file: file.stat().st_mtime_ns for file in cache.glob("self-*.jsonl")}
    assert len(texts) == 2 and len(calls) == (2 if workers == "1" else 0)
    assert len(states(tmp_path / "out")) == 4
    calls.clear()
    assert sweep(path, "--quiet", "--overwrite") == 0
    assert not calls
    assert texts == {file: file.stat().st_mtime_ns for file in cache.glob("self-*.jsonl")}


def test_workers_read_no_tokenizer_again(base, base_folder, tmp_path):
    """From a GGUF file that takes seconds; here it is gone after the first process's check.

    The worker is a new interpreter, as outside of tests.
    """
    model = shutil.copytree(base_folder, tmp_path / "model")
    path = write_sweep(
        tmp_path, base | {"model": base["model"] | {"name": str(model)}}, arms={"a": {}}, seeds=[0]
    )
    plan = load_sweep(path)
    bench = Bench(plan.folder, keep_checkpoints=False)
    bench.check(plan.jobs[0], progress=False)
    for file in model.glob("*token*"):
        file.unlink()
    tasks = unfinished(plan, resume=False, overwrite=False)
    with Crew(1, plan.folder, keep_checkpoints=False) as crew:
        (outcome,) = crew.run(tasks, bench.sources)
    assert not outcome.message


@pytest.mark.parametrize(
    ("visible", "seen"), [(None, ["0", "1", "2", "0"]), ("4,6,7", ["4", "6", "7", "4"])]
)
def test_each_worker_sees_one_gpu(visible, seen, monkeypatch):
    """In the environment it starts with; the first process keeps its own."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    name = "CUDA_VISIBLE_DEVICES"
    monkeypatch.delenv(name, raising=False)
    if visible:
        monkeypatch.setenv(name, visible)
    found = []
    for index in range(4):
        with _one_gpu(index):
            found.append(os.environ[name])
    assert found == seen and os.environ.get(name) == visible
