"""Stops a run before a time limit that somebody else enforces: `train.max_hours`, early enough to save and to leave.

The clock starts with this process, or with the Slurm job where Slurm tells (SLURM_JOB_START_TIME): a limit is the job's,
and tokenizing counts. Only decides; `StopSignals` carries the wish, so that all ranks stop at the same step, save, and
exit with 75. At least one step is made per start, so that a limit that is too short still goes forward.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SLOW_DISK = 100e6
"""Bytes/s assumed of writing and hashing until a save was measured: a slow network folder."""
MARGIN = 1.25
"""Steps and saves vary; the longest one seen is taken so many times."""


class TimeLimitCallback(TrainerCallback):
    """Knows how long steps and saves take, and says when the next ones no longer fit.

    Args:
        hours: the limit; None for none.
        checkpoint: its bytes, for a guess until a save was measured.
        save_seconds: of the longest save of earlier starts, 0 if unknown.
        sequences: in the global batch of a step, from 0; where it grows, so does a step.
    """

    def __init__(
        self,
        hours: float | None,
        checkpoint: int,
        save_seconds: float = 0.0,
        *,
        sequences: Callable[[int], int] = lambda step: 1,
        elapsed: Callable[[], float] | None = None,
    ) -> None:
        self.hours, self._elapsed = hours, elapsed or seconds_since_start
        self.save_seconds = save_seconds
        self._guess = checkpoint / SLOW_DISK
        self._sequences, self._next = sequences, 1
        self._steps: deque[float] = deque(maxlen=50)  # seconds per sequence
        self._began: float | None = None
        self._saving_since: float | None = None

    def reason(self) -> str | None:
        """Why to stop now, or None: what remains must hold a save, a second one if one is due, a step, and the exit."""
        if self.hours is None or not self._steps:
            return None
        limit = 3600 * self.hours
        save = MARGIN * (self.save_seconds or self._guess)
        step = MARGIN * max(self._steps) * self._next
        need = save * (1 if self._saving_since is None else 2) + step + min(60.0, 0.05 * limit)
        return f"train.max_hours={self.hours:g}" if self._elapsed() + need >= limit else None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        now = self._elapsed()
        if self._saving_since is not None:
            self.save_seconds = max(self.save_seconds, now - self._saving_since)
            self._saving_since = None
        self._began = now

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        now = self._elapsed()
        if self._began is not None:
            self._steps.append((now - self._began) / self._sequences(max(0, state.global_step - 1)))
        self._next = self._sequences(state.global_step)
        self._saving_since = now if control.should_save else None

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._saving_since is not None:  # the trainer evaluates first, then saves
            self._saving_since = self._elapsed()


def seconds_since_start(
    environ: Mapping[str, str] = os.environ, stat: Path = Path("/proc/self/stat")
) -> float:
    """Of the Slurm job, else of this process (from /proc: imports count too)."""
    started = environ.get("SLURM_JOB_START_TIME", "")
    if started.isdecimal():
        return time.time() - int(started)
    fields = (
        stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    )  # the name may hold anything
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
