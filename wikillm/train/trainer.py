"""Hugging Face's Trainer, with our batches, accumulation, loss scale and evaluation.

HF fixes the micro-steps per optimizer step before its loop, which a growing batch would break. Here
HF gets all micro-batches of an optimizer step as one batch, and `training_step` loops over them.

The host waits for the GPU only when it reads the loss, once per logging step. Other logged values
are copied to pinned memory earlier and have arrived by then. (Where DeepSpeed clips or partitions,
it reads the gradient norm at every step, to look for infinities.)

HF does everything else: DeepSpeed, mixed precision, clipping, the schedule. The overridden methods
are public, except two about the gradient norm, one that saves and five that load.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, assert_never

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from wikillm.core.errors import WikiLLMError
from wikillm.data.read.loader import to_device
from wikillm.data.read.step_samples import StepSamples
from wikillm.evals.loss import HeldOutLoss, combined
from wikillm.train.checkpoint_errors import loading
from wikillm.train.context import RunContext
from wikillm.train.fragments.average import WeightAverage
from wikillm.train.fragments.layout import undo_first_step
from wikillm.train.fragments.state import TrainingState
from wikillm.train.optimizer import build_muon, parameter_groups
from wikillm.train.reapply_settings import StartSettings
from wikillm.train.restore import (
    check_loaded_weights,
    is_portable,
    restore,
    restore_average,
    restore_random_state,
)
from wikillm.train.run_data import RunData
from wikillm.train.saver import CheckpointSaver, SmallFiles
from wikillm.train.step_ledger import StepLedger

LOSSES_KEPT = 64  # steps whose losses stay on the device


class WikiTrainer(Trainer):
    """Trains on samples in their order from `consumed_samples` on.

    Attributes:
        samples: the samples that each step reads.
        data_seconds: time this rank has waited for batches.
        ledger: the record of what each step consumed.
        losses: (step from 0, losses of its micro-steps) of this rank's latest steps, kept on the
            device so that nothing waits for them.
        average: moving average of the weights; None before the engine is prepared, or without
            train.ema_decay.
        grad_norm: gradient norm of the latest step, on the device or the host; None without one.
        held_out: loss of the latest evaluation over all held-out streams.
        held_out_step: optimizer steps done at that evaluation.
        held_out_of: loss of that evaluation by source of a mixture.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        data: RunData,
        context: RunContext,
        saver: CheckpointSaver,
    ) -> None:
        args.gradient_accumulation_steps = 1  # for HF a step is one batch, see get_batch_samples
        super().__init__(model=model, args=args)
        self.remove_callback(PrinterCallback)
        self.data = data
        self.context = context
        self.saver = saver
        # (step) -> the content of wikillm_state.json; set before training begins.
        self.run_state: Callable[[int], dict[str, Any]] = lambda step: {}
        point = context.point
        self.first_step = point.step if point else 0
        self._trained_before = point.trained_samples if point else 0
        self.samples = StepSamples(
            data.shape.global_batch,
            self.first_step,
            point.consumed_samples if point else 0,
            data.skips,
        )
        # The losses that the next one is compared with (callbacks.spikes); saved in checkpoints.
        self.recent_losses: Iterable[float] = ()
        self.data_seconds = 0.0
        self.losses: deque[tuple[int, torch.Tensor]] = deque(maxlen=LOSSES_KEPT)
        self.average: WeightAverage | None = None
        self.grad_norm: Any = None
        self.held_out: HeldOutLoss | None = None
        self.held_out_step: int | None = None
        self.held_out_of: dict[str, HeldOutLoss] = {}
        self.ledger = StepLedger(context, data.shape, data.shard)
        # This start's optimizer and schedule settings, before a checkpoint is loaded into them.
        self._start_settings: StartSettings | None = None
        # A checkpoint whose random state is still to be loaded.
        self._random_state_in: str | None = None
        self._training_state: TrainingState | None = None
        self._flops_per_token = 0

    @property
    def consumed_samples(self) -> int:
        """The position in the order of the samples, skipped windows included."""
        return self.samples.position(self.state.global_step)

    @property
    def trained_samples(self) -> int:
        """Samples that optimizer steps have used, over all ranks."""
        done = self.state.global_step
        return self._trained_before + (done - self.first_step) * self.data.shape.global_batch

    def samples_of(self, step: int, micro_step: int) -> range:
        """The samples of this rank in a micro-step of `step` (from 0), at or after the start."""
        return self.data.shape.samples_of(self.samples.of(step).start, micro_step)

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Call HF's `train`. Raises CheckpointError if the checkpoint cannot be loaded in full."""
        with loading(Path(str(resume_from_checkpoint)) if resume_from_checkpoint else None):
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create HF's AdamW, or Muon for hidden matrices with AdamW for all other parameters."""
        config = self.context.resolved.config
        if self.optimizer is not None:  # made by an earlier call, as with HF
            return self.optimizer
        match config.train.optimizer:
            case "adamw":
                created: torch.optim.Optimizer = super().create_optimizer(model)
                return created
            case "muon":
                target: Any = self.model if model is None else model
                groups = parameter_groups(target, config.train, config.model.final_norm_init)
                self.optimizer = build_muon(groups, under_deepspeed=self.is_deepspeed_enabled)
                return self.optimizer
            case _:
                assert_never(config.train.optimizer)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """Create HF's scheduler, and record this start's settings before a checkpoint is loaded."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        self._start_settings = StartSettings.of(self.optimizer, scheduler)  # type: ignore[arg-type]
        return scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Let HF load (DeepSpeed has loaded its own state), then reapply this start's settings."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._reapply_settings()

    def _reapply_settings(self) -> None:
        assert self._start_settings is not None, "create_scheduler sets it"
        self._start_settings.reapply(self.optimizer, self.lr_scheduler)
        self.state.compute_steps(self.args, self.args.max_steps)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Let HF load weights of format 1 only; see `_prepare_for_training`."""
        if not is_portable(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        """Let HF prepare, and load a checkpoint of format 1; then restore a portable checkpoint."""
        point = self.context.point
        restores = point is not None and is_portable(point.checkpoint)
        hf_loads = None if restores else resume_from_checkpoint
        prepared = super()._prepare_for_training(max_steps, train_dataloader, hf_loads)
        if point is None or restores:
            undo_first_step(self.optimizer)
        if point is not None and restores:
            restore(point.checkpoint, self.training_state(), point.state, point.verified)
            self._reapply_settings()
        if self.context.resolved.config.train.ema_decay:
            self.average = WeightAverage(self.training_state())
        if point is not None:
            restore_average(point.checkpoint, self.average, point.verified)
            point.forget_verified()
        return prepared

    def training_state(self) -> TrainingState:
        """Weights and optimizer as fragments of global tensors. Needs the prepared engine."""
        if self._training_state is None:
            parts = self.model_wrapped, self.optimizer, self.lr_scheduler, self.accelerator.scaler
            self._training_state = TrainingState(*parts)
        return self._training_state

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Remember the checkpoint: its random state is loaded after the DataLoader draws a seed."""
        self._random_state_in = checkpoint

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse missing or unknown weights, where HF only warns. A tied weight is stored once."""
        check_loaded_weights(load_result, getattr(self.model, "all_tied_weights_keys", None) or {})

    def get_train_dataloader(self) -> DataLoader[Any]:
        # Not prepared by accelerate, which would split the batches over the ranks a second time.
        steps = range(self.first_step, self.args.max_steps)
        return self.data.loader(steps, consumed_samples=self.samples.position(self.first_step))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | None]:
        """All micro-batches of an optimizer step as one item, and the global batch's target count.

        The count follows from the sample order: no count on the device, no collective per step.
        """
        if self._random_state_in is not None:
            if is_portable(Path(self._random_state_in)):
                restore_random_state(Path(self._random_state_in), self.context.world.rank)
            else:
                super()._load_rng_state(self._random_state_in)
            self._random_state_in = None
        start = time.perf_counter()
        samples = self.samples.of(self.state.global_step)
        if self.state.global_step < self.args.max_steps:
            self.context.heartbeat.enter("supply")
            self.data.wait_for(samples.stop)
        self.context.heartbeat.enter("data")
        batches = list(islice(epoch_iterator, self.data.shape.accumulation))
        self.data_seconds += time.perf_counter() - start
        for batch in batches:
            if isinstance(batch, WikiLLMError):  # raised in a DataLoader worker
                raise batch
        if not batches:
            return [], None
        targets = self.data.order.targets_between(samples.start, samples.stop)
        # torch.full is a kernel; torch.tensor would copy, and wait for the copy.
        return [batches], torch.full((), targets, device=device)

    def training_step(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Run all micro-steps of an optimizer step; returns the loss to be logged.

        Without DeepSpeed, ranks exchange gradients only after the last micro-step.
        """
        done = self.state.global_step
        skip = self.samples.skipped.get(done)
        if skip is not None:
            self.ledger.skip(skip.first, skip.stop, skip.reason)
        samples = self.samples.of(done)
        self.ledger.begin_step(done + 1, samples.start, len(samples))
        losses = []
        for number, batch in enumerate(inputs, start=1):
            is_last = number == len(inputs)
            self.accelerator.sync_gradients = is_last  # accelerate passes it on to DeepSpeed
            skips_sync = not is_last and not self.is_deepspeed_enabled
            with self.accelerator.no_sync(model) if skips_sync else nullcontext():
                on_device = to_device(batch, self.args.device)
                losses.append(super().training_step(model, on_device, num_items_in_batch))
            self.ledger.add_batch(number - 1, batch)  # while a GPU computes
        step_losses = torch.stack(losses)
        self.losses.append((done, step_losses))
        return step_losses.sum()

    def floating_point_ops(self, inputs: Any) -> int:
        """HF's count of FLOPs for all micro-batches of a step.

        HF's own method counts the parameters at every call, which takes longer than all callbacks.
        """
        if not self._flops_per_token:
            batch = inputs[0]
            self._flops_per_token = super().floating_point_ops(batch) // batch["input_ids"].numel()
        return self._flops_per_token * sum(batch["input_ids"].numel() for batch in inputs)

    def _clip_grad_norm(self, model: Any) -> Any:
        """Let HF clip, but only without DeepSpeed, whose norm accelerate would wait for."""
        if self.is_deepspeed_enabled:
            return model.get_global_grad_norm()
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm to log, copied without waiting: the copy is complete once HF reads the loss."""
        if grad_norm is None and self.is_deepspeed_enabled:
            grad_norm = model.get_global_grad_norm()
        elif grad_norm is None:
            grad_norm = self.accelerator.clip_grad_norm_(model.parameters(), float("inf"))
        self.grad_norm = grad_norm
        is_tensor = isinstance(grad_norm, torch.Tensor)
        return grad_norm.to("cpu", non_blocking=True) if is_tensor else grad_norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Copy the training state; the saver writes it during the next steps. (all ranks)

        The ledger is flushed first, so that it is never behind a checkpoint.
        """
        self.ledger.flush(durable=True)
        self.store_flos()
        state = self.training_state()
        small_files = None
        if self.context.world.is_main:
            run_state = self.run_state(self.state.global_step) | {"engine": state.counters()}
            trainer_state = json.dumps(asdict(self.state), indent=2, sort_keys=True) + "\n"
            small_files = SmallFiles(run_state, trainer_state, self.model)
        specs = state.specs()
        fragments = state.fragments()
        if self.average is not None and self.average.has_begun:
            specs += self.average.specs()
            fragments += self.average.parts
        self.saver.save(self.state.global_step, specs, fragments, small_files)

    def store_flos(self) -> None:
        """Add this rank's FLOPs times the number of ranks: all have the same, so HF's sum over the
        ranks by a collective is not needed."""
        self.state.total_flos += self.current_flos * self.accelerator.num_processes
        self.current_flos = 0

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the held-out loss by stream and in total. (all ranks)

        Returns {} after a stop request.
        """
        metrics: dict[str, float] = {}
        by_stream = self.data.held_out_losses(
            self.model_wrapped, self.args.device, self.context.group, self.should_stop_evaluating
        )
        if by_stream is None:
            self.held_out = None
            self.held_out_of = {}
        else:
            metrics = self._combine(by_stream)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _combine(self, by_stream: dict[str, HeldOutLoss]) -> dict[str, float]:
        results = list(by_stream.values())
        self.held_out_step = self.state.global_step
        self.held_out = total = combined(results) if len(results) > 1 else results[0]
        self.held_out_of = {name: result for name, result in by_stream.items() if name}
        return {"eval_loss": total.loss, "eval_bits_per_byte": total.bits_per_byte}

    def should_stop_evaluating(self) -> bool:
        """Whether any rank was asked to stop. Called before every batch: it also marks progress for
        the supervisor. (all ranks)"""
        self.context.heartbeat.progress()
        return self.context.group.any(self.context.signals.received is not None)[0]
