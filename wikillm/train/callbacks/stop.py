"""Ends the run on all ranks at the same step: numbers that are not finite, or a request to stop.

After every step all ranks vote. NaN or infinity in any rank's loss, or in the gradient norm, ends
the run before anything is saved. A signal (SIGTERM, see supervise/signals) or the time limit on any
rank ends it after a checkpoint. With fp16 DeepSpeed's loss scaler skips steps that overflow; only a
long series of them ends the run. On a GPU the check of a step is read one step later, so that it
never waits for the GPU; before a checkpoint it is read at once.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from wikillm.checkpoints.layout import list_checkpoints
from wikillm.core.errors import DivergedError
from wikillm.core.files import write_json
from wikillm.core.log import say, warn
from wikillm.train.bad_batch import SHOWN, BadMicroBatch, not_finite
from wikillm.train.pinned import DeferredFlag
from wikillm.train.trainer import WikiTrainer

DIVERGED = "diverged.json"
"""In the run directory: the micro-batches whose loss was not finite."""


class SkipCounter:
    """Counts optimizer steps in a row that fp16's loss scaler skipped."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_a_row = 0
        self._seen = 0

    def step(self, skipped_in_total: int) -> bool:
        """Whether this step was skipped. Raises DivergedError at the limit."""
        skipped = skipped_in_total > self._seen
        self._seen = skipped_in_total
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if self.in_a_row >= self.limit:
            raise DivergedError(
                f"{self.in_a_row} optimizer steps in a row overflowed fp16 and were skipped.",
                fix="lower train.learning_rate, or train.precision=bf16 where the hardware has it",
            )
        return skipped


class StopCallback(TrainerCallback):
    """`stopped_by` names what ended the run early, after training has returned."""

    def __init__(self, trainer: WikiTrainer) -> None:
        self.trainer = trainer
        self.stopped_by: str | None = None
        self._flag = DeferredFlag()
        self._skips = SkipCounter(trainer.context.resolved.config.train.max_skipped_steps)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """From here on there is something to save: a signal is read at the end of each step."""
        self.trainer.context.signals.defer()

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        group = self.trainer.context.group
        signals = self.trainer.context.signals
        bad = self._flag.push(self._not_finite(fp16=args.fp16))
        if control.should_save or state.global_step >= state.max_steps:
            bad = self._flag.flush() or bad
        stop, diverged = group.any(signals.received is not None, bad)
        if diverged:
            raise self._diverged(state.global_step, args.learning_rate / 2)
        if stop and self.stopped_by is None:
            # Every rank reports the reason of the lowest rank that has one, or its own.
            reasons = dict(enumerate(group.gather(signals.received)))
            first = min((rank for rank, reason in reasons.items() if reason), default=0)
            other = f"{reasons[first] or 'a signal'} (rank {first})"
            self.stopped_by = signals.received or other
            say(f"stopping: {self.stopped_by}; saving a checkpoint at step {state.global_step}")
            control.should_save = True
            control.should_training_stop = True

    def _diverged(self, step: int, rate: float) -> DivergedError:
        """Names the micro-batches whose loss is not finite, on all ranks. (all ranks)"""
        context = self.trainer.context
        gathered: list[Any] = context.group.gather(not_finite(self.trainer))
        found: list[BadMicroBatch] = [each for of_rank in gathered for each in of_rank]
        # On a GPU it is known one step later.
        at = min((each.step + 1 for each in found), default=step)
        bad = [each for each in found if each.step + 1 == at]
        of_step = self.trainer.data.shape.accumulation_at(at - 1) * context.world.size
        if context.world.is_main:
            record = {"step": at, "micro_batches": [each.to_json() for each in bad]}
            with suppress(OSError):
                write_json(context.run.path / DIVERGED, record)
        if not bad:
            got = "the loss is finite on every rank, the gradient is not"
        elif len(bad) == of_step:
            got = f"all {of_step} micro-batches of the step: the weights were not finite before it"
        else:
            got = "\n".join(each.text() for each in bad[:SHOWN])
            got += f"\n{len(bad)} of {of_step} micro-batches: {context.run.path / DIVERGED}"
        return DivergedError(
            f"The loss or the gradient is NaN or infinite at step {at}.",
            got=got,
            fix=self._advice(rate),
        )

    def _advice(self, rate: float) -> str:
        run = self.trainer.context.run
        if list_checkpoints(run.checkpoints):
            return (
                "resume from the last checkpoint with a lower learning rate: "
                f"--resume auto train.learning_rate={rate:g}"
            )
        return (
            "there is no checkpoint to resume from: start again with a lower learning rate or a "
            f"longer warm-up: train.learning_rate={rate:g} run.dir={run.path}-2"
        )

    def _not_finite(self, *, fp16: bool) -> torch.Tensor:
        """Whether this step's loss or gradient norm is not finite; stays on the device."""
        if not self.trainer.losses:
            return torch.tensor(False)
        engine: Any = self.trainer.model_wrapped  # DeepSpeed's engine, or a model (in DDP)
        if fp16 and hasattr(engine, "skipped_steps") and self._skips.step(engine.skipped_steps):
            count = self._skips.in_a_row
            warn(f"fp16 overflow: the loss scaler skipped this step ({count} in a row)")
            return torch.tensor(False)
        bad = ~torch.isfinite(self.trainer.losses[-1][1]).all()
        norm = self.trainer.grad_norm
        # torch's own loss scaler skips a step whose norm is infinite.
        is_scaled = fp16 and not self.trainer.is_deepspeed_enabled
        if norm is not None and not is_scaled:
            bad = bad | ~torch.isfinite(torch.as_tensor(norm)).all().to(bad.device)
        return bad
