"""Ends the run on all ranks at the same step, after NaN or infinity or a request to stop.

After every step all ranks vote. NaN or infinity in any rank's loss, or in the gradient norm, ends
the run before anything is saved. A signal (SIGTERM, see supervise/signals), the time limit or
RUN/stop ends it after a checkpoint; RUN/save makes a checkpoint. With fp16 DeepSpeed's loss scaler
skips steps that overflow; only a long series of skipped steps ends the run. On a GPU the check of a
step is read one step later, so that nothing waits for the GPU; before a checkpoint it is read at
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from wikillm.checkpoints.layout import list_checkpoints
from wikillm.core.errors import DivergedError
from wikillm.core.files import write_json
from wikillm.core.log import say, warn
from wikillm.supervise.requests import SAVE
from wikillm.train.bad_batch import SHOWN, BadMicroBatch, not_finite
from wikillm.train.trainer import WikiTrainer

DIVERGED = "diverged.json"
"""File in the run directory that lists the micro-batches whose loss was not finite."""


class DeferredFlag:
    """A boolean computed on the device and read without waiting: on a GPU, one step late."""

    def __init__(self) -> None:
        self._pending: tuple[torch.Tensor, torch.cuda.Event] | None = None

    def push(self, flag: torch.Tensor) -> bool:
        """Start copying this step's flag; returns the last step's (on a CPU, this step's)."""
        if not flag.is_cuda:
            return bool(flag)
        arrived = self.flush()
        host = flag.to("cpu", non_blocking=True)  # into pinned memory
        event = torch.cuda.Event()
        event.record()
        self._pending = (host, event)
        return arrived

    def flush(self) -> bool:
        """Wait for the pending flag and return it; False if there is none."""
        if self._pending is None:
            return False
        host, event = self._pending
        self._pending = None
        event.synchronize()
        return bool(host)


class SkipCounter:
    """Counts optimizer steps in a row that fp16's loss scaler skipped.

    Attributes:
        seen: number of skipped steps after the latest step, earlier starts included.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_a_row = 0
        self.seen = 0

    def step(self, skipped_in_total: int) -> bool:
        """Whether this step was skipped. Raises DivergedError at the limit."""
        skipped = skipped_in_total > self.seen
        self.seen = skipped_in_total
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if self.in_a_row >= self.limit:
            raise DivergedError(
                f"{self.in_a_row} optimizer steps in a row overflowed fp16 and were skipped.",
                fix="lower train.learning_rate, or train.precision=bf16 where the hardware has it",
            )
        return skipped


class StopAfterPhase(TrainerCallback):
    """Stops before the next step for a request during evaluation, samples or a save.

    Args:
        checks: callbacks whose `on_step_end` checks a step that is followed by a save. They run
            again for a save that only this callback asks for.
    """

    def __init__(self, stop: StopCallback, checks: Sequence[TrainerCallback]) -> None:
        self._ask_again = stop.ask_again
        self._checks = checks

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        was_due = control.should_save
        self._ask_again(args, state, control, saved=False)
        if control.should_save and not was_due:
            for check in self._checks:
                check.on_step_end(args, state, control, **kwargs)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._ask_again(args, state, control, saved=True)


class StopCallback(TrainerCallback):
    """Votes after every step. `stopped_by`: the reason of an early stop; None if there was none."""

    def __init__(self, trainer: WikiTrainer) -> None:
        self.trainer = trainer
        self.stopped_by: str | None = None
        self._flag = DeferredFlag()
        self._skips = SkipCounter(trainer.context.resolved.config.train.max_skipped_steps)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """From now on a signal is handled at the end of a step, which can then be saved."""
        self.trainer.context.signals.defer()
        # DeepSpeed's engine continues the count of the checkpoint.
        self._skips.seen = getattr(self.trainer.model_wrapped, "skipped_steps", 0)

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        group = self.trainer.context.group
        signals = self.trainer.context.signals
        requests = self.trainer.context.requests
        # This rank's votes. Before a save the check for NaN is read at once.
        bad = self._flag.push(self._not_finite(fp16=args.fp16))
        if control.should_save or state.global_step >= state.max_steps:
            bad = self._flag.flush() or bad
        is_asked = signals.received is not None
        wants_save = requests.wants_save
        saver = self.trainer.saver
        stop, diverged, save, unsaved = group.any(is_asked, bad, wants_save, saver.has_failed)
        signals.note_step()
        # What any rank voted for, in order of urgency.
        if unsaved:
            saver.finish()  # raises the background save's error on every rank
        if diverged:
            raise self._diverged(state.global_step, args.learning_rate / 2)
        if (stop or save) and not control.should_save:
            self._check_before_saving(args, state)
        if stop:
            self._stop(state, control)
        elif save:
            say(f"saving a checkpoint at step {state.global_step}: {self._run / SAVE}")
            control.should_save = True
        if wants_save:
            requests.clear_save_request()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.context.signals.note_step()

    def ask_again(self, args: Any, state: Any, control: TrainerControl, *, saved: bool) -> None:
        """Stop at this step for a request that came after the step's vote. (all ranks)

        Once the last step is saved, the run ends anyway.
        """
        context = self.trainer.context
        if self.stopped_by is not None or (saved and state.global_step >= state.max_steps):
            return
        if context.group.any(context.signals.received is not None)[0]:
            saved = saved or not self.trainer.is_in_train  # resumed with the last step's checkpoint
            if not saved and not control.should_save:
                self._check_before_saving(args, state)
            self._stop(state, control, saved=saved)

    def _stop(self, state: TrainerState, control: TrainerControl, *, saved: bool = False) -> None:
        if self.stopped_by is not None:
            return
        # Every rank reports its own reason, or else that of the lowest rank with a reason.
        own_reason = self.trainer.context.signals.received
        reasons = dict(enumerate(self.trainer.context.group.gather(own_reason)))
        first = min((rank for rank, reason in reasons.items() if reason), default=0)
        self.stopped_by = own_reason or f"{reasons[first] or 'a signal'} (rank {first})"
        action = "with the checkpoint of" if saved else "saving a checkpoint at"
        say(f"stopping: {self.stopped_by}; {action} step {state.global_step}")
        control.should_save = not saved
        control.should_training_stop = True

    def _check_before_saving(self, args: Any, state: TrainerState) -> None:
        """Read this step's check now, before an unscheduled checkpoint is written."""
        if self.trainer.context.group.any(self._flag.flush())[0]:
            raise self._diverged(state.global_step, args.learning_rate / 2)

    @property
    def _run(self) -> Path:
        return self.trainer.context.run.path

    def _diverged(self, step: int, rate: float) -> DivergedError:
        """The error, which names the micro-batches of all ranks with a bad loss. (all ranks)"""
        context = self.trainer.context
        gathered: list[Any] = context.group.gather(not_finite(self.trainer))
        batches: list[BadMicroBatch] = [batch for of_rank in gathered for batch in of_rank]
        # On a GPU a bad loss is found one step later, so report the first step that has one.
        bad_step = min((batch.step + 1 for batch in batches), default=step)
        bad = [batch for batch in batches if batch.step + 1 == bad_step]
        total = self.trainer.data.shape.accumulation * context.world.size
        if context.world.is_main:
            record = {"step": bad_step, "micro_batches": [batch.to_json() for batch in bad]}
            with suppress(OSError):
                write_json(self._run / DIVERGED, record)
        if not bad:
            got = "the loss is finite on every rank, the gradient is not"
        elif len(bad) == total:
            got = f"all {total} micro-batches of the step: the weights were not finite before it"
        else:
            got = "\n".join(batch.text() for batch in bad[:SHOWN])
            got += f"\n{len(bad)} of {total} micro-batches: {self._run / DIVERGED}"
        return DivergedError(
            f"The loss or the gradient is NaN or infinite at step {bad_step}.",
            got=got,
            fix=self._advice(rate),
        )

    def _advice(self, rate: float) -> str:
        saver = self.trainer.saver
        if saver.is_writing or list_checkpoints(saver.folder):
            return (
                "resume from the last checkpoint with a lower learning rate: "
                f"--resume auto train.learning_rate={rate:g}"
            )
        return (
            "there is no checkpoint to resume from: start again with a lower learning rate or a "
            f"longer warm-up: train.learning_rate={rate:g} run.dir={self._run}-2"
        )

    def _not_finite(self, *, fp16: bool) -> torch.Tensor:
        """Whether this step's loss or gradient norm is not finite, as a tensor on the device."""
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
