"""The sweep file: one base recipe, arms that change it, seeds."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linearard.data import DataConfig
from linearard.errors import RecipeError, UserError
from linearard.fields import LARGEST_SEED, a_list, described, text, user_path, whole
from linearard.model.view_names import ORIGINAL, RESTORED, STRETCHED
from linearard.recipe import Recipe, build_section, load_recipe
from linearard.recipe.secrets import refuse_secrets
from linearard.recipe.yaml_text import parse_yaml, read_yaml
from linearard.sweep.overrides import Changes, changed_recipe, flatten

_ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]{0,119}")
_MOST_ARMS = 2000
#: Files in the folder of a sweep, and the row of the original model in its tables.
_TAKEN = ("sweep.yaml", "sweep.json", "sweep.md", "sweep.html", ORIGINAL)


@dataclass
class SweepFile:
    """The fields of a sweep file."""

    base: str | dict[str, Any] = described(
        "", "The recipe that all arms start from: a packaged name, a path, or the recipe itself."
    )
    output_dir: str = described("runs/sweep", "Where the sweep writes.", text())
    seeds: list[int] = described(
        lambda: [0],
        "Seeds; every trained arm runs once with each.",
        a_list(whole(0, LARGEST_SEED), least=1),
    )
    set: dict[str, Any] = described(dict, "Changes of the base for every arm.")
    arms: dict[str, dict[str, Any] | None] = described(
        dict, "Arms by name: the changes that make each, and another base where it has one."
    )
    grid: dict[str, Any] = described(
        dict, "Fields with lists of values; every combination is one more arm."
    )
    keep_checkpoints: bool = described(False, "Keep checkpoints and final weights of every run.")


@dataclass(frozen=True)
class Job:
    """One run: an arm with a seed.

    Attributes:
        arm: its name.
        recipe: with the arm's changes, the seed and the run's own output folder.
    """

    arm: str
    recipe: Recipe

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.recipe.seed

    @property
    def folder(self) -> Path:
        """Where the run writes: SWEEP/ARM/seed-SEED."""
        return Path(self.recipe.output_dir)

    @property
    def failure_note(self) -> Path:
        """Where the reason of a failure stands: beside the folder, which may not be there."""
        return self.folder.with_name(f"{self.folder.name}.failed.json")

    @property
    def trains(self) -> bool:
        """Whether anything is trained; otherwise the stretched view is what counts."""
        return bool(self.recipe.stages)

    @property
    def view(self) -> str:
        """The view that the arm is judged by."""
        return RESTORED if self.trains else STRETCHED

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


@dataclass
class Sweep:
    """A checked sweep.

    Attributes:
        folder: where it writes.
        jobs: all runs, seed by seed within each arm, arms as given.
        keep_checkpoints: whether weights stay on disk.
        source: the sweep file as plain data, overrides included.
        notes: what the user should hear.
    """

    folder: Path
    jobs: list[Job]
    keep_checkpoints: bool
    source: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def load_sweep(path: str | Path, overrides: dict[str, str] | None = None) -> Sweep:
    """Read a sweep file and check the recipe of every arm.

    Args:
        path: a YAML file with the fields of `SweepFile`.
        overrides: as for `load_recipe`: changes for all arms, applied after `set` and before the
            arm's own, and `output_dir`.

    Raises:
        RecipeError: the file cannot be read, or a field of it or of an arm's recipe is wrong.
    """
    fix = "Give the path of one; docs/how-to/sweeps.md describes it."
    values = read_yaml(str(path), "a sweep file in YAML", fix)
    given = {k: parse_yaml(v, f"--{k}") for k, v in (overrides or {}).items()}
    refuse_secrets([values, given])  # also in what no arm keeps: the folder gets a copy of the file
    if isinstance(values, dict) and "output_dir" in given:
        values["output_dir"] = given.pop("output_dir")
    file = build_section(SweepFile, values, "sweep")
    _check(file, path)
    common = [flatten(file.set, "set"), flatten(given, "the command line")]
    folder = Path(user_path(file.output_dir, "output_dir"))
    jobs, notes = [], {}
    for arm, (base, changes) in _arms(file).items():
        with naming_arm(arm):
            source = load_recipe(base, allowed=given).source if isinstance(base, str) else base
            levels = common if base == file.base else [_of_stages(source, one) for one in common]
            recipes = [
                changed_recipe(source, [*levels, changes], seed, allowed=given)
                for seed in file.seeds
            ]
            near = [Path(path).parent, folder, Path()]
            notes |= dict.fromkeys(_keep_caches_near(one, given, near) for one in recipes)
        for recipe in recipes if recipes[0].stages else recipes[:1]:  # untrained: no seed matters
            place = str(folder / arm / f"seed-{recipe.seed}")
            recipe.output_dir = recipe.source["output_dir"] = place
            if not file.keep_checkpoints:
                _save_nothing(recipe)
            jobs.append(Job(arm, recipe))
    source = values | ({"command line": given} if given else {})
    return Sweep(folder, jobs, file.keep_checkpoints, source, [note for note in notes if note])


def _of_stages(source: dict[str, Any], changes: Changes) -> Changes:
    """Changes for all arms without those of stages that an arm's own base does not have."""
    stages = source.get("stages") or {}
    paths = {name: name.split(".") for name in changes}
    return {
        name: value
        for name, value in changes.items()
        if paths[name][0] != "stages" or len(paths[name]) == 1 or paths[name][1] in stages
    }


def _check(file: SweepFile, path: str | Path) -> None:
    def refuse(expected: str, got: Any, fix: str) -> None:
        raise RecipeError(expected=f"{expected} in {path}", value=got, fix=fix)

    if not (file.arms or file.grid):
        refuse("arms or a grid", None, "Add arms: with a name for each.")


def _keep_caches_near(recipe: Recipe, given: Changes, roots: list[Path]) -> str:
    """Use the user's own cache in place of one that the file of a sweep puts somewhere else.

    Args:
        recipe: of an arm; changed.
        given: what the command line says; a cache that it names is used, wherever it lies.
        roots: folders in which a file may put a cache.

    Returns:
        What was changed, in words; empty if nothing.
    """
    stages = [*((recipe.source.get("stages") or {}).values())]
    parts = [part for stage in stages if stage for part in (stage.get("parts") or {}).values()]
    data = [recipe.source["data"], *((part or {}).get("data") or {} for part in (*stages, *parts))]
    data += [part.data for stage in recipe.stages.values() for part in stage.parts.values()]
    allowed = [root.resolve() for root in (*roots, DataConfig(train=".").cache_path.parent)]
    note = ""
    for section in data:
        place = section.get("cache_dir")
        if place is None or place in given.values():
            continue
        if not any(map(Path(place).expanduser().resolve().is_relative_to, allowed)):
            section["cache_dir"] = None
            note = (
                f"{place} lies outside of the sweep: tokens are kept in the user's cache instead; "
                f"--data.cache_dir {place} allows it"
            )
    recipe.data.cache_dir = recipe.source["data"].get("cache_dir")
    return note


def _arms(file: SweepFile) -> dict[str, tuple[Any, Changes]]:
    """Base and changes by arm: those given by name, then the combinations of the grid."""
    arms = {}
    for name, values in file.arms.items():
        changes = dict(values or {})
        base = changes.pop("base", file.base)
        arms[_checked(name)] = base, flatten(changes, f"arm {name!r}")
    for name, changes in _combinations(flatten(file.grid, "grid")):
        if name in arms:
            raise RecipeError(
                expected="a name of its own for each arm",
                got=f"{name!r} twice",
                fix="Give the arms of the grid by name instead.",
            )
        arms[_checked(name)] = file.base, changes
    for name, (base, _) in arms.items():
        if not base or not isinstance(base, str | dict):
            raise RecipeError(
                expected=f"a base recipe for arm {name!r}",
                value=base,
                fix="Set base: a recipe's name, a path, or the recipe itself.",
            )
    return arms


def _combinations(grid: Changes) -> Iterator[tuple[str, Changes]]:
    if not grid:
        return
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise RecipeError(
                expected=f"grid.{name} to be a list of values", value=values, fix="Correct it."
            )
    if (size := math.prod(map(len, grid.values()))) > _MOST_ARMS:
        raise RecipeError(
            expected=f"a grid of at most {_MOST_ARMS} combinations",
            got=str(size),
            fix="Shorten its lists.",
        )
    ends = Counter(name.rpartition(".")[2] for name in grid)
    varied = [name for name, values in grid.items() if len(values) > 1] or list(grid)
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        parts = []
        for name in varied:
            end = name.rpartition(".")[2]
            parts.append(f"{end if ends[end] == 1 else name}={_value_name(chosen[name])}")
        yield ",".join(parts), flatten(chosen, f"the grid's {','.join(parts)!r}")


def _value_name(value: Any) -> str:
    if isinstance(value, dict):
        return "_".join(f"{key}-{_value_name(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "-".join(map(_value_name, value))
    text = "null" if value is None else str(value).lower() if value in (True, False) else str(value)
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text)


def _checked(name: str) -> str:
    if not _ARM_NAME.fullmatch(name) or name in _TAKEN:
        raise RecipeError(
            expected="names of arms of at most 120 letters, digits and . _ = , + -, beginning with a "
            f"letter or digit, and none of {', '.join(_TAKEN)}",
            value=name,
            fix="Rename the arm; its folder is named after it. A grid's can be given by name in arms.",
        )
    return name


def _save_nothing(recipe: Recipe) -> None:
    source = recipe.source["stages"] or {}
    for name, values in recipe.stages.items():
        values.fields["save_strategy"] = "no"
        source[name] = (source[name] or {}) | {"save_strategy": "no"}


@contextlib.contextmanager
def naming_arm(arm: str) -> Iterator[None]:
    """Name the arm in a refusal by what does not know of arms."""
    try:
        yield
    except UserError as error:
        raise error.reworded(expected=f"{error.expected} in arm {arm!r}") from None
