"""Export of a run: said to read the window that it was trained for, with a card that tells its story."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from linearard.export import Story, export_model
from linearard.model import RestorableModel
from linearard.recipe import Recipe, trained_window


def export_run(
    restorable: RestorableModel,
    recipe: Recipe,
    folder: Path,
    form: str = "merged",
    *,
    story: Story,
    **options: Any,
) -> str:
    """Export a restored model of a recipe.

    Args:
        restorable: the model; a merge uses it up.
        recipe: that it was trained by.
        folder, form, options: as for `export_model`.
        story: of the run, for the model card.

    Returns:
        What was written and how it was proven, in words.

    Raises:
        RecipeError, CheckpointError: as `export_model`.
    """
    rope = restorable.rope
    about = export_model(
        restorable,
        folder,
        form,
        revision=recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
        window=trained_window(recipe, rope.native_window, rope.target_window),
        story=story,
        **options,
    )
    return _summary(folder, about)


def _summary(folder: Path, about: dict[str, Any]) -> str:
    near = ""
    if "relative_error" in about:
        near = (
            f" logits within {about['relative_error']:.2g} (relative), top-1 agreement "
            f"{about['top1_agreement']:.3f}"
        )
    if about["form"] == "gguf":
        where = folder / about["file"]
        lines = [f"exported to {where}: checked with {about['checked_with']}{near and ','}{near}"]
    else:
        lines = [
            f"exported to {folder}: read in a new process by transformers "
            f"{', '.join(about['readers'])}, RoPE and softmax scales as trained, float32{near}"
        ]
    if merge := about.get("merge"):
        lines.append(
            f"merged in {merge['dtype']} ({merge['rounding']}): {merge['change']['share']:.1%} of the "
            f"weights' change kept (cosine {merge['change']['cosine']:.3f}), KL to the original "
            f"{merge['kl_exported']:.4g} nats, before the merge {merge['kl_restored']:.4g}"
        )
    return "\n".join([*lines, *about.get("notes", ())])
