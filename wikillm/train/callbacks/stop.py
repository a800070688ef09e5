"""After every step all ranks agree: is every number finite, does anyone want to stop?

NaN or infinity in any rank's loss, or in the gradient norm, ends the run on all ranks at the same step, before
anything is saved. With fp16 DeepSpeed's loss scaler skips overflowing steps; those are counted, and only a long
series of them ends the run. On a GPU the check of a step is read one step later (a copy to pinned memory in the
meantime), so that it never waits for the GPU; before a checkpoint it is read at once.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from wikillm.checkpoints.layout import list_checkpoints
from wikillm.core.errors import DivergedError
from wikillm.core.log import say, warn
from wikillm.supervise.signals import StopSignals
from wikillm.train.collectives import ControlGroup
from wikillm.train.pinned import DeferredFlag
from wikillm.train.run_dir import RunDir
from wikillm.train.trainer import WikiTrainer


class SkipCounter:
    """Counts optimizer steps in a row that fp16's loss scaler skipped."""

    def __init__(self, limit: int) -> None:
        self.limit, self.in_a_row, self._seen = limit, 0, 0

    def step(self, skipped_in_total: int) -> bool:
        """Was this step skipped? Takes the engine's running total. Raises DivergedError at the limit."""
        skipped = skipped_in_total > self._seen
        self._seen = skipped_in_total
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if self.in_a_row >= self.limit:
            raise DivergedError(
                f"{self.in_a_row} optimizer steps in a row overflowed fp16 and were skipped.",
                fix="lower train.learning_rate, or use train.precision=bf16 on hardware that has it",
            )
        return skipped


class StopCallback(TrainerCallback):
    """Stops the run when a number is not finite or a rank was signalled."""

    def __init__(
        self, run: RunDir, group: ControlGroup, signals: StopSignals, max_skipped_steps: int
    ) -> None:
        self.run, self.group, self.signals = run, group, signals
        self.trainer: WikiTrainer | None = None  # set once the Trainer exists
        self.stopped_by: str | None = None
        self._flag, self._skips = DeferredFlag(), SkipCounter(max_skipped_steps)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here on there is something to save: a request to stop is asked for at the end of each step."""
        self.signals.defer()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        bad = self._flag.push(self._not_finite(fp16=args.fp16))
        if control.should_save or state.global_step >= state.max_steps:
            bad = self._flag.flush() or bad
        stop, diverged = self.group.any(self.signals.received is not None, bad)
        if diverged:
            raise DivergedError(
                f"The loss or the gradient is NaN or infinite at step {state.global_step}.",
                got="on this rank" if bad else "on another rank",
                fix=self._advice(args.learning_rate / 2),
            )
        if stop and self.stopped_by is None:
            reasons = {
                rank: why
                for rank, why in enumerate(self.group.gather(self.signals.received))
                if why
            }
            first = min(reasons, default=0)
            self.stopped_by = (
                self.signals.received or f"{reasons.get(first, 'a signal')} (rank {first})"
            )
            say(f"stopping: {self.stopped_by}; saving a checkpoint at step {state.global_step}")
            control.should_save = True
            control.should_training_stop = True

    def _advice(self, rate: float) -> str:
        if list_checkpoints(self.run.checkpoints):
            return f"go on from the last checkpoint with a lower learning rate: --resume auto train.learning_rate={rate:g}"
        return (
            "there is no checkpoint to go on from: start anew with a lower learning rate or a longer warm-up: "
            f"train.learning_rate={rate:g} run.dir={self.run.path}-2"
        )

    def _not_finite(self, *, fp16: bool) -> torch.Tensor:
        trainer = self.trainer
        if trainer is None or trainer.last_loss is None:
            return torch.tensor(False)
        engine: Any = trainer.model_wrapped  # DeepSpeed's engine, or a plain or DDP-wrapped model
        if (
            fp16
            and hasattr(engine, "skipped_steps")
            and self._skips.step(int(engine.skipped_steps))
        ):
            warn(
                f"fp16 overflow: the loss scaler skipped this step ({self._skips.in_a_row} in a row)"
            )
            return torch.tensor(False)
        bad = ~torch.isfinite(trainer.last_loss).all()
        norm = engine.get_global_grad_norm() if hasattr(engine, "get_global_grad_norm") else None
        if isinstance(norm, torch.Tensor):
            bad = bad | ~torch.isfinite(norm).all().to(bad.device)
        elif norm is not None:
            bad = bad | (not torch.isfinite(torch.tensor(float(norm))))
        return bad
