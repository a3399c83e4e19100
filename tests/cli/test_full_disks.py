"""Disks that fill up or cannot be written: one message, the earlier state whole, the table printed."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import small_run
from linearard.cli.main import main
from linearard.model import written


@pytest.fixture
def small_disk(tmp_path):
    """Mount a small file system; only root may."""
    mounted = []

    def mount(size):
        place = tmp_path / "disk"
        place.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if (
            os.name != "posix"
            or os.geteuid()
            or subprocess.run(command, capture_output=True).returncode
        ):
            pytest.skip("no small file system can be mounted here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


# The size of one checkpoint is about 90 kB: the disk ends in the weights, the optimizer, the tokenizer, a
# second checkpoint, or before the first step.
@pytest.mark.parametrize("size", ["24k", "60k", "90k", "110k", "150k", "220k"])
def test_training(size, recipe, tmp_path, small_disk, capsys):
    place = small_disk(size)
    path = str(small_run.write_recipe(recipe, tmp_path / "recipe.yaml"))
    flags = ["--quiet", "--output-dir", str(place / "run")]
    assert main(["train", path, *flags]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "stage " not in line[:6]]
    assert line.startswith("linearard: error: expected ") and "ree some" in line
    folders = [path for path in (place / "run").glob("stage*/*") if path.is_dir()]
    assert all(written.damage(path) == "" for path in folders)
    if folders:
        subprocess.run(["mount", "-o", "remount,size=2m", str(place)], check=True)
        assert main(["train", path, *flags, "--resume"]) == 0


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", ["write_json", "write_report"])
def test_an_evaluation_prints_its_table(broken, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(f"linearard.pipeline.results.{broken}", full)
    flags = ["--quiet", "--evaluation", small_run.EVALUATION, "--output-dir", str(tmp_path / "out")]
    assert main(["evaluate", str(trained), *flags]) == 2
    captured = capsys.readouterr()
    assert "restored" in captured.out and "perplexity" in captured.out
    (line,) = captured.err.splitlines()
    assert f"expected room on the disk for {tmp_path / 'out'}, got a full disk" in line
    assert "the table above is whole" in line


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_place_that_cannot_be_written_is_found_before(
    command, trained, tmp_path, refusal, no_model
):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file" / "x" / "y", tmp_path / "file"):
        output = ["--output-dir", str(place)] if command == "evaluate" else [str(place)]
        line = refusal(command, str(trained), *output)
        assert "an output folder that can be written" in line
        assert f"in whose way is the file {tmp_path / 'file'}" in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("size", ["40k", "130k"])
def test_an_export(size, trained, small_disk, capsys):
    """An earlier export of the same folder stays."""
    place = small_disk("2m")
    assert main(["export", str(trained), str(place / "out"), "--quiet"]) == 0
    before = {p.name: p.read_bytes() for p in (place / "out").iterdir()}
    used = sum(map(len, before.values()))
    subprocess.run(
        ["mount", "-o", f"remount,size={used + 40960 + int(size[:-1]) * 1024}", str(place)]
    )
    capsys.readouterr()
    assert main(["export", str(trained), str(place / "out"), "--quiet", "--overwrite"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "linearard: error: expected " in line and "Free some, or choose another folder" in line
    assert {p.name: p.read_bytes() for p in (place / "out").iterdir()} == before


def test_an_export_replaces_its_own_files_alone(trained, tmp_path):
    out = tmp_path / "out"
    assert main(["export", str(trained), str(out), "--quiet"]) == 0
    mine = {"notes.txt": b"mine", "model-00001-of-00002.safetensors": b"mine", "mine.gguf": b"mine"}
    for name, content in mine.items():
        (out / name).write_bytes(content)
    flags = ["--format", "adapter", "--overwrite", "--quiet"]
    assert main(["export", str(trained), str(out), *flags]) == 0
    assert {name: (out / name).read_bytes() for name in mine} == mine
    assert not (out / "model.safetensors").exists()
    assert (out / "adapter_model.safetensors").exists()


def test_a_killed_export_is_none(trained, tmp_path, monkeypatch, capsys):
    """Neither a new one nor a mixture with the one before; what a kill leaves is taken up again."""
    out = tmp_path / "out"

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("linearard.export.save.compare", killed)
        patch.setattr("linearard.model.written.shutil.rmtree", lambda path, **options: None)
        assert main(["export", str(trained), str(out), "--quiet"]) == 130
    assert [path.name for path in out.iterdir()] == [".unfinished"]
    assert main(["export", str(trained), str(out), "--quiet"]) == 0
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    assert "config.json" in whole and ".unfinished" not in whole
    replace = os.replace

    def while_replacing(source, target):
        if Path(target).name == "model.safetensors" and Path(target).parent == out:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("linearard.model.written.os.replace", while_replacing)
        assert main(["export", str(trained), str(out), "--quiet", "--overwrite"]) == 130
    assert not (out / "model.safetensors").exists()
    assert not (out / "linearard_export.json").exists()
    assert main(["export", str(trained), str(out), "--quiet", "--overwrite"]) == 0
    again = {path.name: path.read_bytes() for path in out.iterdir()}
    assert again == whole


def test_whatever_else_finds_the_disk_full(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("linearard.train.stage_text.token_blocks", full)
    path = str(small_run.write_recipe(recipe, tmp_path / "recipe.yaml"))
    assert main(["train", path, "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected room on the disk, got No space left on device. Free some" in line


def test_too_little_room_is_told_before_the_first_step(recipe, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)._replace(free=30_000)
    monkeypatch.setattr("linearard.model.disk_space.shutil.disk_usage", lambda folder: usage)
    path = str(small_run.write_recipe(recipe, tmp_path / "recipe.yaml"))
    assert main(["train", path, "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "for the checkpoints of stage 'restoration'" in line and "got 30.0 kB free" in line
    assert not list(Path(recipe["output_dir"]).glob("stage*/*"))
