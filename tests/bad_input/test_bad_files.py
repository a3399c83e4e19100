"""Files that are no recipe, no sweep, no tasks, no checkpoint: by hand, by kind."""

import json
import os

import pytest
import yaml

import small_run
from linearard.errors import RecipeError
from linearard.recipe.yaml_text import parse_yaml

_BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}\n" for i in range(1, 10)
)
_MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], y{i}: 1}}\n" for i in range(1, 12)
)
#: Text, and a word of the message.
YAML = {
    "a bomb of aliases": (_BOMB, "aliases multiply"),
    "a bomb of lists": (_BOMB.replace("{", "[").replace("}", "]").replace("k", "#"), "YAML"),
    "merged keys": (_MERGED, "a field of the recipe"),
    "an alias within itself": ("model: &a {name: x, more: *a}", "an alias within what it names"),
    "a list within itself": ("model: &a [*a]", "an alias within what it names"),
    "deep lists": ("model: " + "[" * 100 + "]" * 100, "levels of nesting"),
    "very deep lists": ("model: " + "[" * 20_000, "hundreds of levels"),
    "deep mappings": ("".join(" " * i + "a:\n" for i in range(60)), "levels of nesting"),
    "very deep mappings": ("{a: " * 5_000, "hundreds of levels"),
    "a list as a name": ("{? [a, b] : 1}", "in the place of a name"),
    "a mapping as a name": ("{? {a: b} : 1}", "in the place of a name"),
    "a number as a name": ("3: {a: 1}", "names in text"),
    "a truth as a name": ("model: {true: 1}", "names in text"),
    "nothing as a name": ("model: {null: 1}", "names in text"),
    "a long number": ("seed: " + "1" * 5000, "a number of 5000 digits"),
    "a long number in base 16": ("seed: 0x" + "f" * 5000, "at most 63 bits"),
    "Python": ("model: !!python/object/apply:os.system ['touch ran']", "valid YAML"),
    "Python's names": ("model: !!python/name:os.system", "valid YAML"),
    "an unknown tag": ("model: !secret x", "valid YAML"),
    "binary": ("model: !!binary aGVsbG8=", "text, a number"),
    "a set": ("model: !!set {a, b}", "text, a number"),
    "a date by tag": ("model: {name: !!timestamp 2024-01-01}", "text, a number"),
    "no date": ("model: {name: !!timestamp 2024-13-45}", "valid YAML"),
    "no number": ("seed: !!int words", "valid YAML"),
    "no float": ("seed: !!float words", "valid YAML"),
    "no truth": ("seed: !!bool maybe", "valid YAML"),
    "two documents": ("model: {}\n---\nmodel: {}", "valid YAML"),
    "an alias to nothing": ("model: *nowhere", "valid YAML"),
    "a name twice": ("model: {name: a, name: b}", "given twice"),
    "half a character": ('model: {name: "\\ud83d"}', "halves of characters"),
    "a zero byte": ('model: {name: "a\\0b"}', "control characters"),
    "an escape": ('model: {name: "\\e[31m"}', "control characters"),
    "a control byte": ("model: \x01", "valid YAML"),
    "no number at all": ("seed: .nan", "a finite number"),
    "infinity": ("rope: {factor: .inf}", "rope.factor to be a finite number"),
    "a very large number": ("rope: {factor: 1e308}", "rope.factor to be a finite number"),
    "tabs": ("\tmodel: x", "valid YAML"),
    "nothing": ("", "an empty file"),
    "null": ("null", "an empty file"),
    "blanks": ("   \n\n  # a comment\n", "an empty file"),
    "a word": ("recipe", "got 'recipe'"),
    "a number": ("42", "got 42"),
    "JSON that is cut": ('{"model": {"name": "x"', "valid YAML"),
    "too much": ("# " + "x" * (1 << 20), "of at most 1 MiB"),
}


@pytest.mark.parametrize("case", YAML)
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_text_that_is_no_recipe(case, command, refused, place, tmp_path):
    text, word = YAML[case]
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    line = refused(command, path)
    if command == "train":
        assert word in line
    assert not (place / "ran").exists()


def test_a_bomb_is_small_and_soon_refused(tmp_path):
    """Nine to the ninth values from a kilobyte; the limit counts values, so this takes no time at all."""
    assert len(_BOMB) < 1000
    with pytest.raises(RecipeError, match="at most 100000 values"):
        parse_yaml(_BOMB, "x")
    assert len(str(parse_yaml(_MERGED, "x"))) < 2000


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("-2E+5", -2e5),
        ("1_000", 1000),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("0b11", 3),
        ("+7", 7),
        ("1.", 1.0),
        (".5", 0.5),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("2024-01-01", "2024-01-01"),
        ("no", "no"),
        ("off", "off"),
        ("True", True),
        ("~", None),
        ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}),
        ("{<<: {a: 1, b: 2}, b: 3}", {"a": 1, "b": 3}),
    ],
)
def test_values_mean_what_they_say(text, value):
    assert parse_yaml(text, "x") == value and type(parse_yaml(text, "x")) is type(value)


@pytest.mark.parametrize(
    "path",
    [
        "",
        " ",
        ".",
        "..",
        "/",
        "base",
        "nowhere.yaml",
        "recipe.yaml/x",
        "/dev/null",
        "~",
        "a" * 300,
        "a/" * 3000,
        "/proc/self/mem",
        "smollm2",
        "../recipes/smollm2-135m-64k",
        "base/model.safetensors",
    ],
)
@pytest.mark.parametrize("command", ["train", "plan", "sweep"])
def test_paths_that_are_no_recipe(command, path, refused):
    refused(command, path)


def test_a_file_without_end(refused):
    """Read as far as a recipe may be long."""
    assert "of at most 1 MiB, got more in /dev/zero" in refused("train", "/dev/zero")


def test_a_pipe_is_a_file(place, tmp_path, refused):
    """As `linearard train <(sed ... recipe.yaml)` gives one."""
    read, write = os.pipe()
    os.write(write, b"model: {}")
    os.close(write)
    assert "a section 'model'" in refused("train", f"/dev/fd/{read}")
    os.close(read)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("evaluate", ["nowhere"]),
        ("evaluate", ["recipe.yaml"]),
        ("evaluate", ["base"]),
        ("evaluate", ["/dev/null"]),
        ("evaluate", ["a" * 300]),
        ("export", ["nowhere", "out"]),
        ("export", ["base", "out"]),
        ("export", ["recipe.yaml", "out"]),
        ("export", ["nowhere", "base"]),
        ("sweep", ["recipe.yaml"]),
        ("sweep", ["recipe.yaml", "--workers", "0"]),
        ("sweep", ["base/config.json"]),
        ("plan", ["recipe.yaml", "--gpu-memory", "24 potatoes"]),
        ("plan", ["recipe.yaml", "--gpu-memory=-1GiB"]),
        ("plan", ["recipe.yaml", "--gpu-memory", "nan"]),
        ("plan", ["recipe.yaml", "--gpu-memory", "1e400GiB"]),
        ("plan", ["recipe.yaml", "--gpu-memory", "9" * 5000]),
        ("plan", ["recipe.yaml", "--gpu-memory", ""]),
        ("plan", []),
        ("train", ["recipe.yaml", "--model.name"]),
        ("train", ["recipe.yaml", "--model.name", "--resume"]),
        ("train", ["recipe.yaml", "--.", "3"]),
        ("train", ["recipe.yaml", "--.a", "3"]),
        ("train", ["recipe.yaml", "--a.", "3"]),
        ("train", ["recipe.yaml", "--model..name", "3"]),
        ("train", ["recipe.yaml", "--model.name.", "3"]),
        ("train", ["recipe.yaml", "--stages.", "null"]),
        ("train", ["recipe.yaml", "--stages.cpt.", "3"]),
        ("train", ["recipe.yaml", "--seed="]),
        ("train", ["recipe.yaml", "--stages", "null"]),
        ("train", ["recipe.yaml", "--stages", "[]"]),
        ("train", ["recipe.yaml", "--rope", "null"]),
        ("train", ["recipe.yaml", "--rope", "linear"]),
        ("train", ["recipe.yaml", "--data", "books"]),
        ("train", ["recipe.yaml", "--data", "{validation: train}"]),
        ("train", ["recipe.yaml", "--adapter", "[1]"]),
        ("train", ["recipe.yaml", "--evaluation", "fast"]),
        ("train", ["recipe.yaml", "--stages.cpt", "{}"]),
        ("train", ["recipe.yaml", "--stages.cpt.parts", "{a b: {}}"]),
        ("train", ["recipe.yaml", "--stages.cpt.parts", "{a: 3}"]),
        ("train", ["recipe.yaml", "--stages.cpt.parts", "3"]),
        ("train", ["recipe.yaml", "--stages.cpt.objective", "3"]),
        ("train", ["recipe.yaml", "--stages.cpt.data", "[]"]),
    ],
)
def test_command_lines(command, arguments, refused, request):
    if arguments[2:] == ["{}"] or (arguments and arguments[-1] == "[]"):
        pytest.skip("an empty stage has defaults")
    refused(command, *arguments)


_SWEEP = {"base": "recipe.yaml", "output_dir": "out", "arms": {"a": {}}}


@pytest.mark.parametrize(
    "changes",
    [
        {"base": ""},
        {"base": 3},
        {"base": "nowhere"},
        {"base": []},
        {"base": {}},
        {"base": {"model": 3}},
        {"base": "base"},
        {"seeds": []},
        {"seeds": [1, 1]},
        {"seeds": [-1]},
        {"seeds": [2**70]},
        {"seeds": ["1"]},
        {"seeds": 3},
        {"arms": {}},
        {"arms": []},
        {"arms": {"a": 3}},
        {"arms": {"a": {"rope": {}}}},
        {"arms": {"a": {"seed": 3}}},
        {"arms": {"a": {"output_dir": "x"}}},
        {"arms": {"a": {"nothing": 1}}},
        {"arms": {"a": {"stages": {"nothing": {"window": 3}}}}},
        {"arms": {"original": {}}},
        {"arms": {"sweep.json": {}}},
        {"arms": {"a" * 121: {}}},
        {"arms": {3: {}}},
        {"arms": {"a": {"": 3}}},
        {"arms": {"a": {"model..name": "x"}}},
        {"set": {"seed": 1}},
        {"set": 3},
        {"set": {"model.trust_remote_code": True}},
        {"grid": {"rope.factor": 4}},
        {"grid": {"rope.factor": []}},
        {"grid": {"seed": [1, 2]}},
        {"grid": {f"stages.cpt.{name}": list(range(2, 99)) for name in ("window", "sequences")}},
        {"grid": {f"stages.cpt.{i}": list(range(1000)) for i in range(30)}},
        {"keep_checkpoints": "yes"},
        {"output_dir": 3},
        {"output_dir": ""},
        {"output_dir": "~nobody-there/x"},
        {"unknown": 1},
    ],
    ids=str,
)
def test_sweeps(changes, refused, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(_SWEEP | changes, sort_keys=False))
    refused("sweep", path)


TASKS = {
    "not an object": "[1]",
    "a number": "3",
    "nothing": "null",
    "cut": '{"context": "a"',
    "no context": '{"target": "a"}',
    "a context of another kind": '{"context": 3, "target": "a"}',
    "an empty target": '{"context": "a", "target": " "}',
    "a target of another kind": '{"context": "a", "target": ["b"]}',
    "one choice": '{"context": "a", "choices": ["b"], "answer": 0}',
    "choices of another kind": '{"context": "a", "choices": [1, 2], "answer": 0}',
    "choices as text": '{"context": "a", "choices": "bc", "answer": 0}',
    "an answer outside": '{"context": "a", "choices": ["b", "c"], "answer": 2}',
    "a negative answer": '{"context": "a", "choices": ["b", "c"], "answer": -1}',
    "an answer as text": '{"context": "a", "choices": ["b", "c"], "answer": "0"}',
    "an answer as truth": '{"context": "a", "choices": ["b", "c"], "answer": true}',
    "a fraction": '{"context": "a", "choices": ["b", "c"], "answer": 0.0}',
    "no continuation": '{"context": "a", "context_options": ["b", "c"], "answer": 0}',
    "deep": "[" * 100_000,
    "a long number": '{"context": "a", "target": "b", "x": ' + "1" * 5000 + "}",
    "a byte order mark": "\ufeff\ufeff{}",
    "half a character": '{"context": "\\ud83d", "target": "b"}',
}


@pytest.mark.parametrize("case", TASKS)
def test_task_files(case, refused, tmp_path):
    good = '{"context": "the ship", "target": " sea"}\n'
    (tmp_path / "task.jsonl").write_text(good + TASKS[case] + "\n" + good)
    config = {"tasks_dir": str(tmp_path), "perplexity_windows": [48], "agreement_window": 0}
    config |= {"passkey_lengths": []}
    line = refused("train", "recipe.yaml", "--evaluation", json.dumps(config))
    assert "task.jsonl:2" in line


def test_a_task_file_that_is_a_folder(refused, tmp_path):
    (tmp_path / "task.jsonl").mkdir()
    config = {"tasks_dir": str(tmp_path), "perplexity_windows": [48], "agreement_window": 0}
    config |= {"passkey_lengths": []}
    line = refused("train", "recipe.yaml", "--evaluation", json.dumps(config))
    assert "task.jsonl" in line


def test_in_a_process_of_its_own(tmp_path):
    """The exit code that a shell sees, and nothing but the line."""
    bad = tmp_path / "bad.yaml"
    bad.write_text(_BOMB)
    done = small_run.launch("train", str(bad))
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("linearard: error: expected ")


def test_home_folders_are_found(place, tmp_path, monkeypatch):
    """`--output_dir=~/x` reaches the program as it is written."""
    monkeypatch.setenv("HOME", str(tmp_path))
    from linearard.recipe import load_recipe

    recipe = load_recipe(place / "recipe.yaml", {"output_dir": "~/x"})
    assert recipe.output_dir == str(tmp_path / "x")


def test_what_is_refused_late_leaves_no_folder(place, refused):
    """The output folder is claimed before text is read."""
    refused("train", "recipe.yaml", "--output_dir", "new/er/folder", "--data.train", "/nowhere")
    assert not (place / "new").exists()
