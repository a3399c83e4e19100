"""`transformers.Trainer` for restoration: live terms, refused bad steps, whole checkpoints."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    default_data_collator,
)

from linearard import interruption
from linearard.capture import needs_no_mask
from linearard.counting import worth_recording
from linearard.distill import RestorationModule
from linearard.errors import NonFiniteLossError
from linearard.model import RestorableModel, load_weights, read_metadata, written
from linearard.recipe.stage import RestorationConfig
from linearard.train import checkpoints
from linearard.train.among_others import TrainerAmongOthers
from linearard.train.clipping import clip_gradients, total_norm
from linearard.train.cuda_graphs import CapturedSteps, find_gradients
from linearard.train.guard import save_good
from linearard.train.held_out import HeldOutText
from linearard.train.history import thin_out
from linearard.train.optimizers import own_optimizer
from linearard.train.processes import shared_sequence, sharing
from linearard.train.progress import LiveProgress, Speed
from linearard.train.random_state import RandomState
from linearard.train.shares import add_shares
from linearard.train.step_events import StepEvents
from linearard.train.watched import WatchedStage
from linearard.train.weight_interpolation import InitialWeights
from linearard.train.windows import check_datasets, check_window, numbered, the_only_item


class RestorationTrainer(TrainerAmongOthers):
    """Trains the adapter of a restorable model with one stage's objective.

    Args:
        restorable: one copy of the weights, its views and its adapter.
        args: the stage.
        train_dataset: items `{"input_ids": int64 [window]}` of equal length; `InterleavedParts` where
            `args.parts` names some.
        eval_dataset: windows, for `eval_strategy`; not with parts.
        stage: the stage's name, written into checkpoints.
        held_out: windows that the stage is watched by, as `args.held_out` says; None: it is not.
        metadata: further JSON-able entries for checkpoints; where `data` is among them, a resume
            from a checkpoint with other `data` is refused.
        callbacks: further `TrainerCallback`s.

    Raises:
        DataError: the data sets are not of the kind that `args.parts` asks for, or windows of one part,
            by their first, are not of `args.window` tokens.
    """

    #: Of transformers' Trainer, more narrowly than it says itself.
    args: RestorationConfig
    model: torch.nn.Module
    train_dataset: Any
    optimizer: Any

    def __init__(
        self,
        restorable: RestorableModel,
        args: RestorationConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        *,
        stage: str = "restoration",
        held_out: HeldOutText | None = None,
        metadata: dict[str, Any] | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        check_datasets(bool(args.parts), train_dataset, eval_dataset)
        if not args.parts:
            check_window(args.window, train_dataset)
        parts = {name: part.objective for name, part in args.all_parts.items()}
        self._beginning: InitialWeights | None = None
        self._is_sharded = restorable.sharded
        self._good: dict[str, Tensor] = {}
        self._shared = shared_sequence(args, restorable)
        module = RestorationModule(
            restorable, parts, offload_teacher=args.offload_teacher, shared=self._shared
        )
        if args.recompute:
            module.gradient_checkpointing_enable(args.kept_layers)
        if args.ddp_broadcast_buffers is None:
            args.ddp_broadcast_buffers = False  # all are constants, the same in every process
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = module.leaves_parameters_unused
        # Trainer rotates checkpoints before ours are marked complete; we rotate after.
        self._keep, args.save_total_limit = args.save_total_limit, None
        args._n_gpu = min(args.n_gpu, 1)  # one process a GPU: DataParallel cannot switch views
        super().__init__(
            model=module,
            args=args,
            train_dataset=numbered(train_dataset),
            eval_dataset=None if eval_dataset is None else numbered(eval_dataset),
            data_collator=the_only_item if args.parts else default_data_collator,
            callbacks=[StepEvents(self), *(callbacks or [])],
            optimizer_cls_and_kwargs=own_optimizer(args),
        )
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        if not args.disable_tqdm:
            self.add_callback(LiveProgress(stage))
        self.restorable, self.stage, self._metadata = restorable, stage, metadata or {}
        self.can_return_loss = True
        self._micro_steps: list[tuple[Tensor, Tensor]] = []
        self._norm: Tensor | None = None  # of this step's gradients, if clipping has found it
        self._random_state: RandomState | None = None
        self._asked = 0  # the signal that ends training, as all processes know it
        self._started = time.perf_counter()
        self._term_sums: dict[str, Tensor] = {}
        self._term_counts: dict[str, int] = {}
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        self._speed = Speed(restorable, parts, dtype, sharing=sharing(args))
        self._captured: CapturedSteps | None = None
        steady = needs_no_mask(restorable.model) and not restorable.rope.depends_on_length
        if steady and _can_be_captured(self.args):
            parameters = restorable.adapter.parameters()
            self._captured = CapturedSteps(self._run_batch, parameters, self._is_worth_recording)
        self._watched = None if held_out is None else WatchedStage(self, held_out)
        if self._watched is not None and args.recompute:  # looking has switched it off
            module.gradient_checkpointing_enable(args.kept_layers)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See `Trainer.train`; recorded graphs end with it. See `weight_interpolation` for how it ends."""
        beginning = self._begin()
        if self._watched is not None:
            self._watched.prepare()
        self._speed.start()
        self._asked = 0
        try:
            with self._watching_peers(), interruption.deferred():
                result = super().train(*args, **kwargs)
                if self._asked:
                    raise interruption.Ended(self._asked, self._kept())
        finally:
            if self._captured is not None:
                self._captured.release()
        if self._watched is None:
            self.check_state()
        self._end(beginning)
        return result

    def take_finished(self, checkpoint: Path) -> float:
        """Be as after `train`, by its last checkpoint; the seconds that it took."""
        beginning = self._begin()
        if self._watched is not None:
            self._watched.prepare()
        self.state = self.state.load_from_json(str(checkpoint / "trainer_state.json"))
        stored = load_weights(self.restorable, checkpoint)
        if self._watched is not None:
            self._watched.guard.load(checkpoint, stored["guard"])
        self._end(beginning)
        return stored.get("seconds", 0.0)

    def _begin(self) -> InitialWeights:
        """Where the stage began, also when it is called again after a failure."""
        if self._beginning is None:
            watched = self._watched is not None
            self._beginning = InitialWeights(
                self.restorable.adapter, self.args.weight_interpolation < 1 and not watched
            )
        return self._beginning

    def _end(self, beginning: InitialWeights) -> None:
        """Leave the share of the change that is to be kept."""
        if self._watched is None:
            beginning.blend(self.args.weight_interpolation)
        else:
            self._watched.finish(self.state.global_step)

    def set_learning_rate(self, rate: float) -> None:
        """The peak rate of the optimizer that training makes."""
        self.args.learning_rate = rate
        if self.optimizer_cls_and_kwargs is not None:
            self.optimizer_cls_and_kwargs[1]["lr"] = rate

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], Any]:
        """The batches of a step, each with what its terms' means weigh among all of them."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        add_shares(batches, self.args, self.accelerator)
        return batches, items

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Loss of a batch; remembers its terms for the log and its blocks for a refusal."""
        blocks = inputs.pop("block")
        outputs = model(**inputs)
        if model.training:
            self._remember(outputs, inputs, blocks)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def training_step(
        self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Forward and backward of one batch."""
        mixed = self.args.bf16 or self.args.fp16
        casts = self.restorable.adapter.without_casts() if mixed else contextlib.nullcontext()
        with casts, self.restorable.tap.step():
            # With a mask `transformers` reads from the device what kind of mask it is.
            if self._captured is None or "attention_mask" in inputs:
                return super().training_step(model, inputs, *args, **kwargs)
            model.train()
            if callable(getattr(self.optimizer, "train", None)):
                self.optimizer.train()
            inputs = self._prepare_inputs(inputs)
            blocks, batches = inputs.pop("block"), self.current_gradient_accumulation_steps
            outputs = self._captured(inputs, batches)
            self._remember(outputs, inputs, blocks)
            return outputs["loss"] / batches

    def _run_batch(self, **inputs: Any) -> dict[str, Tensor]:
        """What `Trainer` does with a batch on one device without a scaler; detached outputs."""
        with self.compute_loss_context_manager():
            outputs = self.model_wrapped(**inputs)
        loss = outputs["loss"] / self.current_gradient_accumulation_steps
        find_gradients(loss, self.restorable.adapter.parameters())
        return {name: output.detach() for name, output in outputs.items()}

    def _is_worth_recording(self, inputs: dict[str, Any]) -> bool:
        kinds, layers = len(self.args.all_parts), self.restorable.tap.num_layers
        return worth_recording(self._speed.flops_of(inputs), layers, kinds)

    def _clip_grad_norm(self, model: Any) -> Tensor:
        if self._captured is None and not self.restorable.sharded:
            norm = super()._clip_grad_norm(model)
        else:
            norm = clip_gradients(self.restorable.adapter.parameters(), self.args.max_grad_norm)
        self._norm = norm if isinstance(norm, Tensor) else None
        return norm

    def _remember(self, outputs: dict[str, Tensor], inputs: dict[str, Any], blocks: Tensor) -> None:
        self._micro_steps.append((outputs["loss"].detach(), blocks))
        for name, value in outputs.items():
            if name != "loss":
                self._term_sums[name] = self._term_sums.get(name, 0.0) + value
                self._term_counts[name] = self._term_counts.get(name, 0) + 1
        self._speed.add(inputs)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[Tensor, None, None]:
        """Validation loss of a batch; logits are never formed for it."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach().mean(), None, None

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self._seconds_before + time.perf_counter() - self._started

    def end_good_step(self, control: Any) -> None:
        """Remember what a checkpoint of this step holds beyond weights, should the next be refused.

        Where a signal has asked for the end, this step is the last.
        """
        self._random_state = RandomState()
        if self.args.world_size == 1:
            self._asked = interruption.asked()
        if self._asked:
            control.should_save = control.should_training_stop = True

    def end_within_step(self) -> None:
        """Go back to the step before where a signal has asked for the end: a step may be long.

        Raises:
            Ended: the state of that step is saved.
        """
        if self.args.world_size == 1 and interruption.asked():
            self._keep_last_state()
            raise interruption.Ended(interruption.asked(), self._kept())

    def _kept(self) -> str:
        latest = checkpoints.latest_complete(Path(str(self.args.output_dir)))
        return f"the state of step {self.state.global_step} is kept in {latest}" if latest else ""

    def refuse_bad_step(self) -> None:
        """Raise if a loss or a gradient of this step is not finite; called before the optimizer.

        Raises:
            NonFiniteLossError: the weights are those of the last good step, saved as a checkpoint.
        """
        losses = torch.stack([loss.float() for loss, _ in self._micro_steps])
        norm, self._norm = self._norm, None
        if norm is None:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = total_norm(gradients)
        good = torch.isfinite(losses).all()
        if self.accelerator.scaler is None:  # float16's scaler mends infinite gradients itself
            good &= torch.isfinite(norm)
        micro_steps, self._micro_steps = self._micro_steps, []
        flags = torch.stack([good.float(), losses.new_full((), interruption.asked())])
        flags = self.accelerator.gather(flags[None]).tolist()  # all processes end after one step
        self._asked = int(max(asked for _, asked in flags))
        if all(good for good, _ in flags):
            return
        if self._watched is not None and self._go_back():
            return
        named = self._name_blocks(losses, [blocks for _, blocks in micro_steps])
        losses = self.accelerator.gather(losses)
        step = self.state.global_step
        raise NonFiniteLossError(
            expected="finite losses and gradients",
            got=f"losses {[round(x, 4) for x in losses.tolist()]} with gradient norm {float(norm):.4g} in "
            f"step {step + 1} of stage {self.stage!r}, {named}",
            fix=f"The step was refused{self._keep_last_state()} "
            "If the cause has passed, go on with --resume; otherwise lower learning_rate, set "
            "model.dtype to float32 or mend that text, and start again with --overwrite.",
        )

    def _keep_last_state(self) -> str:
        """Save the state before a refused step; the end of the sentence that tells of the refusal."""
        step = self.state.global_step
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{step}"
        if not step:
            return "."
        if not written.is_complete(folder):
            if self._random_state is not None:
                self._random_state.restore()
            try:
                self._save_checkpoint(self.model, None)
            except NonFiniteLossError as error:  # it is what spoilt the step
                return f"; the state before it is no good either, and was not saved: {error.got}."
        return f" and the state of step {step} is kept in {folder}."

    def _mend_state(self) -> bool:
        return self._watched is not None and self._go_back()

    def _go_back(self) -> bool:
        """Undo the step's damage by the last good weights at a lower rate; false: not any more."""
        assert self._watched is not None
        options = {"optimizer": self.optimizer, "lr_scheduler": self.lr_scheduler}
        reason = "a loss, a gradient or a weight is not finite"
        if not self._watched.guard.go_back(self.state.global_step, reason, **options):
            return False
        for parameter in self.restorable.adapter.parameters():
            parameter.grad = None  # the optimizer leaves weights without a gradient alone
        return True

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the mean of every term since the last log, and the speed."""
        if "loss" in logs and self._term_sums:
            names = list(self._term_sums)
            means = [self._term_sums[name] / self._term_counts[name] for name in names]
            means = self.accelerator.gather(torch.stack(means).float()[None]).mean(0)
            logs |= dict(zip(names, means.tolist(), strict=True))
            logs |= self._speed.read(self.args.world_size)
            self._term_sums, self._term_counts = {}, {}
        super().log(logs, start_time)
        thin_out(self.state.log_history, max(int(self.state.logging_steps or 1), 1))

    def _write_checkpoint(self, folder: Path, **extra: Any) -> None:
        guard = None if self._watched is None else self._watched.guard
        super()._write_checkpoint(folder, **extra, **({"guard": guard.state()} if guard else {}))
        save_good(folder, self._good)

    def _gather(self) -> None:
        super()._gather()
        guard = None if self._watched is None else self._watched.guard
        self._good = guard.gathered(self.state.global_step) if guard else {}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._watched is not None:
            folder = Path(resume_from_checkpoint)
            self._watched.guard.load(folder, read_metadata(folder)["guard"])


def _can_be_captured(args: RestorationConfig) -> bool:
    """Whether batches can be recorded, and here."""
    return args.records_graphs and args.device.type == "cuda" and args.world_size == 1
