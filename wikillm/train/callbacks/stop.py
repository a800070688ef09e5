"""Ends the run on all ranks at the same step: numbers that are not finite, or a request to stop.

After every step all ranks vote. NaN or infinity in any rank's loss, or in the gradient norm, ends
the run before anything is saved. A signal (SIGTERM, see supervise/signals) or the time limit on any
rank ends it after a checkpoint. With fp16 DeepSpeed's loss scaler skips steps that overflow; only a
long series of them ends the run. On a GPU the check of a step is read one step later, so that it
never waits for the GPU; before a checkpoint it is read at once.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from wikillm.checkpoints.layout import list_checkpoints
from wikillm.core.errors import DivergedError
from wikillm.core.log import say, warn
from wikillm.train.pinned import DeferredFlag
from wikillm.train.trainer import WikiTrainer


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
            raise DivergedError(
                f"The loss or the gradient is NaN or infinite at step {state.global_step}.",
                got="on this rank" if bad else "on another rank",
                fix=self._advice(args.learning_rate / 2),
            )
        if stop and self.stopped_by is None:
            # Every rank reports the reason of the lowest rank that has one, or its own.
            reasons = dict(enumerate(group.gather(signals.received)))
            first = min((rank for rank, reason in reasons.items() if reason), default=0)
            other = f"{reasons[first] or 'a signal'} (rank {first})"
            self.stopped_by = signals.received or other
            say(f"stopping: {self.stopped_by}; saving a checkpoint at step {state.global_step}")
            control.should_save = True
            control.should_training_stop = True

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
        if self.trainer.last_loss is None:
            return torch.tensor(False)
        engine: Any = self.trainer.model_wrapped  # DeepSpeed's engine, or a model (in DDP)
        if fp16 and hasattr(engine, "skipped_steps") and self._skips.step(engine.skipped_steps):
            count = self._skips.in_a_row
            warn(f"fp16 overflow: the loss scaler skipped this step ({count} in a row)")
            return torch.tensor(False)
        bad = ~torch.isfinite(self.trainer.last_loss).all()
        norm = engine.get_global_grad_norm() if hasattr(engine, "get_global_grad_norm") else None
        if norm is not None:
            bad = bad | ~torch.isfinite(torch.as_tensor(norm)).all().to(bad.device)
        return bad
