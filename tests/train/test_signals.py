"""Signals: the step that is trained is the last, its state is saved, and a resumed run ends the same."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from poisoned import Poison

import small_run
from forked import Forked
from linearard import interruption
from linearard.cli.main import main
from linearard.distill import RestorationModule
from linearard.model import written

NUMBERS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


@pytest.fixture(autouse=True)
def interrupts_reach_this_process():
    """Whoever starts the tests in the background may have had SIGINT ignored, which all children inherit."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def undisturbed(base_folder, tmp_path_factory):
    """Weights of the run that nothing happens to. Dropout is on, so the random state counts."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return small_run.final_bytes(small_run.train(small_run.small_recipe(folder, base_folder)))


def send(name):
    """A change of a loss that leaves it as it is, and sends this process a signal."""

    def change(loss):
        os.kill(os.getpid(), getattr(signal, name))
        return loss

    return change


# Stage 1 takes two calls a step, so that odd calls are followed by another of the same step; it saves
# every second step.
@pytest.mark.parametrize(
    ("name", "call", "kept"),
    [
        ("SIGINT", 8, "the state of step 4 is kept in {run}/stage1-restoration/checkpoint-4"),
        ("SIGTERM", 6, "the state of step 3 is kept in {run}/stage1-restoration/checkpoint-3"),
        ("SIGHUP", 7, "the state of step 3 is kept in {run}/stage1-restoration/checkpoint-3"),
        ("SIGTERM", 13, "the state of step 1 is kept in {run}/stage2-cpt/checkpoint-1"),
        ("SIGTERM", 1, ""),
    ],
    ids=["a saved step", "a step", "within a step", "second stage", "first step"],
)
def test_the_state_is_saved(
    name, call, kept, undisturbed, tmp_path, base_folder, monkeypatch, capfd
):
    recipe = small_run.small_recipe(tmp_path, base_folder)
    path = str(small_run.write_recipe(recipe, tmp_path / "recipe.yaml"))
    run = Path(recipe["output_dir"])
    with monkeypatch.context() as patch:
        poison = Poison(RestorationModule.forward, call, send(name))
        patch.setattr(RestorationModule, "forward", poison)
        assert main(["train", path, "--quiet"]) == NUMBERS[name]
    notice, last = [line for line in capfd.readouterr().err.splitlines() if line]
    assert f"{name}: ending after this step, with a checkpoint; once more ends at once" in notice
    words = "interrupted" if name == "SIGINT" else f"ended by {name}"
    kept = f"; {kept.format(run=run)}" if kept else ""
    assert last == f"linearard: {words}{kept}; go on with --resume"
    assert not (run / "final").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert main(["train", path, "--quiet", "--resume"]) == 0
    assert small_run.final_bytes(run) == undisturbed


def test_a_second_one_ends_at_once(undisturbed, tmp_path, base_folder, monkeypatch, capfd):
    """Even while a checkpoint is written; what the launcher repeats at once is no second one."""
    recipe = small_run.small_recipe(tmp_path, base_folder)
    path = str(small_run.write_recipe(recipe, tmp_path / "recipe.yaml"))

    def twice(loss):
        for _ in range(3):
            send("SIGINT")(loss)
        return loss

    def slow(folder):
        time.sleep(interruption._SAME_SECONDS + 0.05)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(RestorationModule, "forward", Poison(RestorationModule.forward, 2, twice))
        patch.setattr(written, "complete", slow)
        assert main(["train", path, "--quiet"]) == 130
    assert capfd.readouterr().err.splitlines()[-1] == "linearard: interrupted; go on with --resume"
    stage = Path(recipe["output_dir"]) / "stage1-restoration"
    assert list(stage.iterdir()) == []
    assert main(["train", path, "--quiet", "--resume"]) == 0
    assert small_run.final_bytes(Path(recipe["output_dir"])) == undisturbed


def test_outside_training_it_ends_at_once(tmp_path, base_folder, monkeypatch, capsys):
    def read(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("went on")

    monkeypatch.setattr("linearard.train.stage_text.token_blocks", read)
    recipe = small_run.small_recipe(tmp_path, base_folder)
    path = str(small_run.write_recipe(recipe, tmp_path / "recipe.yaml"))
    assert main(["train", path, "--quiet"]) == 143
    assert capsys.readouterr().err == "linearard: ended by SIGTERM; go on with --resume\n"


def test_what_is_ignored_stays_ignored():
    """`nohup` has SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruption.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(interruption.Ended):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_threads_other_than_the_first_cannot_listen():
    found = []

    def work():
        with interruption.listening():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


def test_the_message_has_a_line_of_its_own(tmp_path, base_folder, monkeypatch, capfd):
    recipe = small_run.one_stage(tmp_path, base_folder, sequences=4)
    path = str(small_run.write_recipe(recipe, tmp_path / "recipe.yaml"))
    poison = Poison(RestorationModule.forward, 2, send("SIGTERM"))
    monkeypatch.setattr(RestorationModule, "forward", poison)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # where a bar is drawn
    assert main(["train", path]) == 143
    error = capfd.readouterr().err
    assert "only: " in error  # the bar
    assert "\nlinearard: ended by SIGTERM; the state of step 2" in error
    assert error.endswith("; go on with --resume\n")


def test_a_sweep_goes_on_within_a_run(tmp_path, base_folder, monkeypatch, capfd):
    """Checkpoints that it would remove after a run, done or failed, are there for the resumed one."""
    recipe = small_run.one_stage(tmp_path, base_folder, sequences=4, save_steps=100)
    recipe["evaluation"] = {
        "perplexity_windows": [48],
        "perplexity_tokens": 200,
        "agreement_window": 48,
        "agreement_tokens": 200,
        "passkey_lengths": [],
    }
    values = {"base": recipe, "output_dir": str(tmp_path / "out"), "arms": {"one": {}}}
    path = str(small_run.write_recipe(values, tmp_path / "sweep.yaml"))
    run = tmp_path / "out" / "one" / "seed-0"
    with monkeypatch.context() as patch:
        patch.setattr(
            RestorationModule, "forward", Poison(RestorationModule.forward, 3, send("SIGTERM"))
        )
        assert main(["sweep", path, "--quiet"]) == 143
    assert (
        f"the state of step 3 is kept in {run}/stage1-only/checkpoint-3" in capfd.readouterr().err
    )
    with monkeypatch.context() as patch:
        patch.setattr(RestorationModule, "forward", poison := Poison(RestorationModule.forward, 0))
        assert main(["sweep", path, "--quiet", "--resume"]) == 0
    assert poison._count == 1
    assert (run / "evaluation.json").exists() and not list(run.glob("stage*"))


def test_one_of_two_processes_is_asked(tmp_path, base_folder):
    """Both end after the same step, and torchrun's own signal to the other changes nothing."""
    recipe = small_run.one_stage(tmp_path, base_folder, sequences=400, save_steps=1000)
    path = str(small_run.write_recipe(recipe, tmp_path / "recipe.yaml"))
    process = subprocess.Popen(
        small_run.command("train", path, "--quiet", processes=2),
        env=small_run.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    stage = Path(recipe["output_dir"]) / "stage1-only"
    deadline = time.monotonic() + 240
    while not stage.is_dir() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    time.sleep(2)  # the folder is there a moment before both processes train
    _ask_to_end(process.pid, rank="1")
    _, error = process.communicate(timeout=240)
    lines = [line for line in error.splitlines() if line.startswith("linearard: ended")]
    assert len(lines) == 1 and "ended by SIGTERM; the state of step" in lines[0], error
    (checkpoint,) = stage.glob("checkpoint-*")
    assert written.damage(checkpoint) == "" and str(checkpoint) in lines[0]


def test_a_process_that_hangs(tmp_path, base_folder):
    """It is stopped; the other says so and ends by itself."""
    recipe = small_run.one_stage(
        tmp_path, base_folder, sequences=400, num_train_epochs=20, save_steps=1
    )
    path = str(small_run.write_recipe(recipe, tmp_path / "recipe.yaml"))
    script = str(Path(__file__).with_name("impatient.py"))
    arguments = [script, "6", path]
    stage = Path(recipe["output_dir"]) / "stage1-only"
    with Forked(arguments, processes=2, environment=small_run.environment()) as running:
        deadline = time.monotonic() + 240
        while not list(stage.glob("checkpoint-*")) and time.monotonic() < deadline:
            assert running.poll() is None, running.outputs()
            time.sleep(0.1)
        stopped = running.processes[1].pid
        os.kill(stopped, signal.SIGSTOP)
        while running.processes[0].is_alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(stopped, signal.SIGCONT)
        result = running.wait(60)
    assert result.returncode != 0
    (line,) = [line for line in result.stderr.splitlines() if "linearard: error" in line]
    assert "got nothing from process 1 for 6 s" in line, result.stderr
    assert "go on with --resume" in line
    assert all(written.damage(folder) == "" for folder in stage.glob("checkpoint-*"))


def _ask_to_end(launcher, rank):
    for status in Path("/proc").glob("[0-9]*/status"):
        if f"\nPPid:\t{launcher}\n" in status.read_text():
            environment = (status.parent / "environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in environment:
                os.kill(int(status.parent.name), signal.SIGTERM)
                return
    raise AssertionError("no such worker")
