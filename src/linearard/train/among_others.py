"""What a trainer does because there are other processes of the same training."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from linearard.capture import SharedSequence
from linearard.train.peers import watching_peers
from linearard.train.saving import SavingTrainer


class TrainerAmongOthers(SavingTrainer):
    """Deals batches out, leaves a divided model as it is, and says where a process was lost."""

    _shared: SharedSequence | None  # the processes that share this one's windows
    _is_sharded: bool  # whether the model's layers are divided among all

    def create_accelerator_and_postprocess(self) -> None:
        """See `Trainer`; a model that is divided among processes already is not wrapped once more."""
        super().create_accelerator_and_postprocess()
        # By which `accelerate` deals the batches out.
        self.accelerator.state.device_mesh = None if self._shared is None else self._shared.mesh
        if self._is_sharded:
            prepare = self.accelerator.prepare_model
            as_it_is = {"device_placement": False, "evaluation_mode": True}
            self.accelerator.prepare_model = lambda model, **_: prepare(model, **as_it_is)

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if not self._is_sharded:  # else it is there
            super()._move_model_to_device(model, device)

    def average_shared_gradients(self) -> None:
        """Of the processes that share windows, where a backward pass went past what would do so."""
        if self._shared is None or self._is_sharded:
            return
        for parameter in self.restorable.adapter.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self.args.world_size

    def _watching_peers(self) -> contextlib.AbstractContextManager[None]:
        return watching_peers(self.accelerator, self._where, float(self.args.ddp_timeout))

    def _where(self) -> str:
        return f"step {self.state.global_step + 1} of stage {self.stage!r}"

    def _name_blocks(self, losses: Tensor, blocks: list[Tensor]) -> str:
        """The blocks of this step, of all processes, whose loss is not finite; all if every one is."""
        flags = [
            (~torch.isfinite(loss)).expand(len(some))
            for loss, some in zip(losses, blocks, strict=True)
        ]
        flags = self.accelerator.gather(torch.cat(flags).to(losses.device).float()).bool()
        numbers = self.accelerator.gather(torch.cat(blocks).to(losses.device))
        named = sorted(numbers[flags].tolist() or numbers.tolist())
        shown = f"blocks {', '.join(map(str, named[:16]))}{', …' if len(named) > 16 else ''}"
        if self.restorable.tokenizer is None:
            return shown
        first = self.train_dataset.window(named[0])[:32]
        return f"{shown} (the first begins {self.restorable.tokenizer.decode(first)!r})"
