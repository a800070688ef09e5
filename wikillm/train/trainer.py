"""Hugging Face's Trainer with five things of our own: the batches, accumulation, what a loss is divided by, evaluation, and
that the host does not wait for the GPU.

HF tells the end of an accumulation by a number that is fixed before the loop, so a batch that grows would end in the wrong
place. Here it is given all micro-batches of an optimizer step as one, and `training_step` goes through them.
A value on a GPU is read by the host once per logging step, the loss; what else is logged is copied to pinned memory before, and has
arrived with it. (DeepSpeed reads the norm of the gradient at every step, to look for infinities, where it clips or partitions.)
Everything else (DeepSpeed, mixed precision, clipping, the schedule) is HF's; the rest of the run's
behaviour is in callbacks. HF's methods that are overridden here are public ones, but for two about the gradient's norm, the one
that saves, and three about what a resume loads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from wikillm.core.errors import CheckpointError, WikiLLMError
from wikillm.data.read.corpus import NamedStream, Tokens, TrainingOrder
from wikillm.data.read.loader import (
    BatchShape,
    DocumentMask,
    SequenceShard,
    eval_loader,
    to_device,
    train_loader,
)
from wikillm.evals.loss import HeldOutLoss, combined, held_out_loss
from wikillm.models.z_loss import ZLoss
from wikillm.supervise.heartbeat import Heartbeat
from wikillm.supervise.signals import StopSignals
from wikillm.train.checkpoint_errors import loading, saving
from wikillm.train.collectives import ControlGroup
from wikillm.train.optimizer import MuonSettings, build_muon, parameter_groups
from wikillm.train.pinned import PinnedCopy
from wikillm.train.reapply_settings import StartSettings


@dataclass(frozen=True, slots=True)
class RunData:
    """The token streams of a run and how they are read."""

    train: Tokens
    val: tuple[NamedStream, ...]
    order: TrainingOrder
    shape: BatchShape
    max_eval_tokens: int | None
    eval_micro_batch: int
    workers: int
    mask: DocumentMask | None = None
    shard: SequenceShard | None = None  # of each sequence, where ranks share them
    wait_for: Callable[[int], None] = lambda stop: (
        None
    )  # until the samples before `stop` stand (all ranks)


class WikiTrainer(Trainer):
    """Trains on samples in their order from `consumed_samples` on.

    Attributes:
        consumed_samples: samples that optimizer steps have used up, over all ranks. The state of the data.
        data_seconds: time this rank has waited for batches.
        last_loss: this rank's loss at its latest micro-step, on the device (no sync).
        z_loss_sum: what the z-loss has added on this rank since it was last logged, on the device.
        held_out: result of the latest evaluation, over all held-out streams.
        held_out_of: the same by source of a mixture.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        data: RunData,
        control_group: ControlGroup,
        signals: StopSignals,
        callbacks: list[TrainerCallback],
        heartbeat: Heartbeat,
        *,
        first_step: int = 0,
        consumed_samples: int = 0,
        z_loss: ZLoss | None = None,
        muon: MuonSettings | None = None,
    ) -> None:
        args.gradient_accumulation_steps = 1  # for HF a step is one batch, see get_batch_samples
        super().__init__(model=model, args=args, callbacks=callbacks)
        self.data, self.control_group, self.signals, self.heartbeat = (
            data,
            control_group,
            signals,
            heartbeat,
        )
        self.first_step, self._consumed_before = first_step, consumed_samples
        self.data_seconds = 0.0
        self.muon = muon
        self.z_loss, self.z_loss_sum = z_loss, torch.zeros((), device=args.device)
        self._norm_copy, self._z_loss_copy, self._z_loss_host = (
            PinnedCopy(),
            PinnedCopy(),
            self.z_loss_sum,
        )
        self.last_loss: torch.Tensor | None = None
        self.held_out: HeldOutLoss | None = None
        self.held_out_of: dict[str, HeldOutLoss] = {}
        self._fresh: StartSettings | None = (
            None  # before a checkpoint is loaded into optimizer and schedule
        )
        self._random_state_in: str | None = (
            None  # a checkpoint whose random state is still to be loaded
        )

    @property
    def consumed_samples(self) -> int:
        return self._consumed_before + self.data.shape.samples_between(
            self.first_step, self.state.global_step
        )

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """HF's; what does not load in the checkpoint is a CheckpointError."""
        with loading(Path(str(resume_from_checkpoint)) if resume_from_checkpoint else None):
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """HF's AdamW, or Muon with AdamW for what is no hidden matrix."""
        if self.muon is None or self.optimizer is not None:
            created: torch.optim.Optimizer = super().create_optimizer(model)
            return created
        target: Any = self.model if model is None else model
        groups = parameter_groups(target, self.get_decay_parameter_names(target), self.muon)
        self.optimizer = build_muon(groups, under_deepspeed=self.is_deepspeed_enabled)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """HF's. It is the last thing made before a checkpoint is loaded, so here the settings are still this start's."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        self._fresh = StartSettings.of(self.optimizer, scheduler)  # type: ignore[arg-type]
        return scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """HF's (DeepSpeed has loaded its own before); then what this start says of rates, decay and intervals holds again."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self._fresh is not None:
            self._fresh.put_back(self.optimizer, self.lr_scheduler)
            self.state.compute_steps(self.args, self.args.max_steps)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """HF loads it before the DataLoader's iterator draws a seed, which would leave it one draw ahead: it waits."""
        self._random_state_in = checkpoint

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """HF warns of weights that are missing or unknown. A tied one is stored once; any other ends the resume."""
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        missing = [name for name in load_result.missing_keys if name not in tied]
        if missing or load_result.unexpected_keys:
            raise CheckpointError(
                "The weights in the checkpoint are not those of this model.",
                got=f"missing: {', '.join(missing) or 'none'}\nunknown: {', '.join(load_result.unexpected_keys) or 'none'}",
                fix="resume with the model that was trained",
            )

    def get_train_dataloader(self) -> DataLoader[Any]:
        # Not prepared by accelerate: it would share the batches out over the ranks a second time.
        return train_loader(
            self.data.train,
            self.data.order,
            self.data.shape,
            total_steps=self.args.max_steps,
            first_step=self.first_step,
            consumed_samples=self._consumed_before,
            workers=self.data.workers,
            mask=self.data.mask,
            shard=self.data.shard,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | None]:
        """All micro-batches of one optimizer step as one item, and the number of targets in the step's global batch.

        That number follows from the order alone: no count on the device and no collective per step.
        """
        if self._random_state_in is not None:
            super()._load_rng_state(self._random_state_in)
            self._random_state_in = None
        start, first, shape = time.perf_counter(), self.consumed_samples, self.data.shape
        stop = first + shape.global_batch_at(self.state.global_step)
        if self.state.global_step < self.args.max_steps:
            self.heartbeat.enter("supply")
            self.data.wait_for(stop)
        self.heartbeat.enter("data")
        micro_steps = range(shape.accumulation_at(self.state.global_step))
        batches = [batch for _, batch in zip(micro_steps, epoch_iterator, strict=False)]
        self.data_seconds += time.perf_counter() - start
        for batch in batches:
            if isinstance(batch, WikiLLMError):  # what a loader process met
                raise batch
        if not batches:
            return [], None
        targets = self.data.order.targets_between(first, stop)
        return [batches], torch.full(
            (), targets, device=device
        )  # a kernel; torch.tensor would copy, and wait for it

    def training_step(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """All micro-steps of an optimizer step; ranks exchange gradients after the last one, as far as ZeRO lets them.

        What it returns is logged as the loss: the cross entropy of the global batch, without the z-loss.
        """
        if self.is_deepspeed_enabled and len(inputs) != model.gradient_accumulation_steps():
            # DeepSpeed counts each rank's input as sequences of its own, also where they are parts of one.
            size = self.data.shard.size if self.data.shard else 1
            model.set_train_batch_size(
                size * self.data.shape.global_batch_at(self.state.global_step)
            )
        losses = []
        for number, batch in enumerate(inputs, start=1):
            is_last = number == len(inputs)
            self.accelerator.sync_gradients = (
                is_last  # where accelerate tells DeepSpeed that a step ends
            )
            waits = not is_last and not self.is_deepspeed_enabled
            with self.accelerator.no_sync(model) if waits else nullcontext():
                losses.append(self._micro_step(model, batch, num_items_in_batch))
        if self.z_loss is not None:
            self._z_loss_host = self._z_loss_copy.bring(self.z_loss_sum)
        return torch.stack(losses).sum()

    def _micro_step(self, model: Any, batch: Any, num_items_in_batch: Any) -> torch.Tensor:
        loss = super().training_step(model, to_device(batch, self.args.device), num_items_in_batch)
        if self.z_loss is not None and self.z_loss.latest is not None:
            part = (
                self.z_loss.latest * self.accelerator.num_processes
            )  # as HF scales the loss it averages over ranks
            self.z_loss_sum += part
            loss = loss - part.to(loss.dtype)
        self.last_loss = loss
        return loss

    def floating_point_ops(self, inputs: Any) -> int:
        """HF's count, of all micro-batches of a step."""
        return sum(super(WikiTrainer, self).floating_point_ops(batch) for batch in inputs)

    def mean_z_loss(self, steps: int) -> float | None:
        """The z-loss per optimizer step since the last call, over all ranks; None in a run without it. (all ranks)"""
        if self.z_loss is None:
            return None
        mean = (
            self.control_group.sum(float(self._z_loss_host))[0]
            / self.accelerator.num_processes
            / max(1, steps)
        )
        self.z_loss_sum.zero_()
        return mean

    def _clip_grad_norm(self, model: Any) -> Any:
        """HF's; DeepSpeed clips by itself, and of what it tells accelerate would wait for the value."""
        return (
            model.get_global_grad_norm()
            if self.is_deepspeed_enabled
            else super()._clip_grad_norm(model)
        )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm to be logged, not waited for: it has arrived on the host when the loss has been read."""
        if grad_norm is None and self.is_deepspeed_enabled:
            grad_norm = model.get_global_grad_norm()
        elif grad_norm is None:
            grad_norm = self.accelerator.clip_grad_norm_(model.parameters(), float("inf"))
        return (
            self._norm_copy.bring(grad_norm) if isinstance(grad_norm, torch.Tensor) else grad_norm
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """HF's, into the staging folder."""
        with saving(Path(str(self.args.output_dir)), self.state.global_step):
            super()._save_checkpoint(model, trial)

    def store_flos(self) -> None:
        """HF adds the counts up over the ranks, a collective and a read; here all ranks have the same."""
        self.state.total_flos += self.current_flos * self.accelerator.num_processes
        self.current_flos = 0

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss on each held-out stream and on all; a stop request ends it early on all ranks. (all ranks)"""
        found: dict[str, HeldOutLoss] = {}
        for stream in self.data.val:
            result = self._held_out_loss(stream)
            if result is None:
                return {}
            found[stream.name] = result
        self.held_out = total = (
            combined(found.values()) if len(found) > 1 else next(iter(found.values()))
        )
        self.held_out_of = {name: result for name, result in found.items() if name}
        metrics = {"eval_loss": total.loss, "eval_bits_per_byte": total.bits_per_byte}
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _held_out_loss(self, stream: NamedStream) -> HeldOutLoss | None:
        loader = eval_loader(
            stream.tokens,
            self.data.order.sequence_length,
            micro_batch=self.data.eval_micro_batch,
            world_size=self.data.shape.world_size,
            rank=self.data.shape.rank,
            max_tokens=self.data.max_eval_tokens,
            mask=self.data.mask,
            shard=self.data.shard,
        )
        return held_out_loss(
            self.model_wrapped,
            loader,
            bytes_per_token=stream.bytes_per_token,
            device=self.args.device,
            sum_over_ranks=self.control_group.sum,
            should_stop=self._should_stop_evaluating,
        )

    def _should_stop_evaluating(self) -> bool:
        """Asked before every batch, so it is also the mark that the evaluation goes on. (all ranks)"""
        self.heartbeat.progress()
        return self.control_group.any(self.signals.received is not None)[0]
