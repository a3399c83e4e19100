"""A checkpoint that is opened again: by whom it was made is not known."""

from __future__ import annotations

from pathlib import Path

from linearard.errors import CheckpointError
from linearard.fields import user_path
from linearard.model import METADATA_FILE, read_metadata, written
from linearard.recipe.recipe import Recipe, checkpoint_recipe
from linearard.train.folder import FINAL, RECIPE_FILE


def open_checkpoint(folder: Path, overrides: dict[str, str] | None = None) -> tuple[Path, Recipe]:
    """The checkpoint and the recipe behind a run's folder, or behind one of its checkpoints.

    Raises:
        CheckpointError: there is none, or an override contradicts what it was trained as.
        RecipeError: an override is wrong, or the checkpoint asks for what only the command line allows.
    """
    folder = Path(user_path(str(folder), "the checkpoint"))
    if (folder / FINAL / written.COMPLETE).is_file():
        folder = folder / FINAL
    elif (folder / RECIPE_FILE).is_file():
        raise CheckpointError(
            expected="a finished run, or one of its checkpoints",
            got=f"the unfinished run {folder}",
            fix=f"Finish it with `linearard train {folder / RECIPE_FILE} --resume`, or name a folder "
            f"{folder}/stage*/checkpoint-*.",
        )
    source = read_metadata(folder).get("recipe")
    if source is None:
        raise CheckpointError(
            expected=f"a checkpoint of `linearard train`, with its recipe in {METADATA_FILE}",
            got=f"none in {folder}",
            fix="Open a checkpoint without a recipe with `linearard.model.load_restored`.",
        )
    overrides = overrides or {}
    where = str(folder / METADATA_FILE)
    recipe = checkpoint_recipe(source, overrides, where=where)
    as_trained = {n: v for n, v in overrides.items() if n.split(".")[0] not in ("rope", "adapter")}
    trained = checkpoint_recipe(source, as_trained, where=where)
    for section in ("rope", "adapter"):
        if getattr(trained, section) != getattr(recipe, section):
            raise CheckpointError(
                expected=f"the {section} that the checkpoint was trained with",
                got=f"another ({', '.join(n for n in overrides if n.startswith(section))})",
                fix=f"Leave --{section}.* out.",
            )
    return folder, recipe


def share_not_kept(folder: Path, recipe: Recipe) -> str:
    """What a checkpoint of a stage holds beyond what the stage keeps, in words; empty if nothing."""
    stage = read_metadata(folder).get("stage")
    keep = (
        recipe.stages[stage].fields.get("weight_interpolation", 1) if stage in recipe.stages else 1
    )
    if keep == 1:
        return ""
    return (
        f"{folder} holds all that stage {stage!r} changed; at its end {keep:g} of that is kept (stages."
        f"{stage}.weight_interpolation), in the run's {FINAL}."
    )


def own_folder(folder: Path, name: str) -> Path:
    """A folder within a checkpoint to write to, which is no way out of it.

    Args:
        folder: the checkpoint.
        name: of the folder within; it may be missing.

    Raises:
        CheckpointError: it is a link, or holds one: what is written there would land elsewhere.
    """
    inner = folder / name
    links = [inner] if inner.is_symlink() else []
    if not links and inner.is_dir():
        links = [path for path in sorted(inner.iterdir()) if path.is_symlink()]
    if links:
        raise CheckpointError(
            expected=f"{inner} to lie within the checkpoint",
            got=f"the link {links[0]}",
            fix="Give --output-dir.",
        )
    return inner
