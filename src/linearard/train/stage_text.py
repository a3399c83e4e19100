"""What one stage reads: windows of text, those that the model is still to write, those it is watched by."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from linearard.data import BlockDataset, token_blocks
from linearard.data.config import SELF
from linearard.model import RestorableModel, read_metadata
from linearard.recipe import PartConfig, Recipe, RestorationConfig
from linearard.train import checkpoints
from linearard.train.held_out import held_out_text
from linearard.train.processes import PROCESSES, readers
from linearard.train.self_generated_text import SelfGeneratedBlocks
from linearard.train.windows import InterleavedParts, StageWindows

_BETWEEN_PARTS = 100_003  # apart by more than the seeds of a sweep


class StageText:
    """The text of one stage, cut into windows but for what the model is to write.

    Args:
        recipe: of the run.
        stage: arguments of the stage.
        tokenizer: of the model.
        native: the original's window.
        before: parts of the stages before it; each part of a run draws windows of its own.
        progress: show bars.
        processes: that the run was started with.

    Attributes:
        windows: what the trainer reads.
        held_out: the windows that the stage is watched by; None: it is not.
    """

    def __init__(
        self,
        recipe: Recipe,
        stage: RestorationConfig,
        tokenizer: Any,
        *,
        native: int,
        before: int,
        progress: bool,
        processes: int,
    ) -> None:
        self._stage, self._processes = stage, processes
        self._parts = {
            name: _part_blocks(recipe, part, number, tokenizer, native, progress)
            for number, (name, part) in enumerate(stage.all_parts.items(), before)
        }
        self.windows = self._windows()
        self.held_out = held_out_text(stage.held_out, recipe.data, tokenizer, progress=progress)

    def _windows(self) -> StageWindows | InterleavedParts:
        if not self._stage.parts:
            return StageWindows(self._parts[""])
        sized = {n: (found, self._stage.parts[n].batch_size) for n, found in self._parts.items()}
        return InterleavedParts(sized, readers(self._stage, self._processes))

    @property
    def unwritten(self) -> list[SelfGeneratedBlocks]:
        """What of it the model writes, once it is loaded."""
        return [found for found in self._parts.values() if isinstance(found, SelfGeneratedBlocks)]

    def write(self, restorable: RestorableModel, *, progress: bool) -> None:
        """Let the model write its part; windows exist from then on.

        Raises:
            CheckpointError: a checkpoint of the stage was trained on another text.
        """
        for blocks in self.unwritten:
            blocks.write(restorable, progress=progress)
        if self.unwritten:  # else it was done before there was a model
            self.check_resumable()

    @property
    def circumstances(self) -> dict[str, Any]:
        """What decides the training beside the recipe; kept in every checkpoint."""
        return {
            "data": {"fingerprint": self.windows.fingerprint},
            PROCESSES: self._processes,
        }

    def check_resumable(self) -> None:
        """Refuse to go on from a checkpoint of the same recipe but other text.

        Raises:
            CheckpointError: the newest checkpoint of the stage is of such a run.
        """
        latest = checkpoints.latest_complete(Path(self._stage.output_dir))
        if latest is None:
            return
        checkpoints.check_same_text(read_metadata(latest), self.circumstances["data"], latest)

    def tokens_read(self, steps: int) -> int:
        """Tokens of the first so many optimizer steps, by all processes."""
        stage, available = self._stage, len(self.windows)
        a_step = (
            stage.per_device_train_batch_size * stage.gradient_accumulation_steps * readers(stage)
        )
        # an epoch's last step may be short
        epochs, rest = divmod(steps, math.ceil(available / a_step))
        begun = self.windows.tokens_read(min(rest * a_step, available))
        return epochs * self.windows.tokens_read(available) + begun


def _part_blocks(
    recipe: Recipe, part: PartConfig, number: int, tokenizer: Any, native: int, progress: bool
) -> BlockDataset | SelfGeneratedBlocks:
    data = dataclasses.replace(recipe.data, **part.data)
    # Each part draws its own: two with one window would read the same text.
    data.seed += recipe.seed + _BETWEEN_PARTS * number
    if data.train == SELF:
        return SelfGeneratedBlocks(data, tokenizer, part.window, part.sequences, native)
    options = {"split": "train", "count": part.sequences, "progress": progress}
    return token_blocks(data, tokenizer, part.window, **options)
