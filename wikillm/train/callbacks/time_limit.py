"""Stops a run before a time limit that a scheduler enforces: `train.max_hours`.

The stop comes early enough to save and to exit. The clock starts with the Slurm job
(SLURM_JOB_START_TIME), else with this process: the limit is the job's, and tokenizing counts. The
callback only decides; `StopSignals` carries the request, so that all ranks stop at the same step,
save, and exit with 75. Each start makes at least one step: a limit that is too short still makes
progress.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState

SLOW_DISK = 100e6
"""Bytes/s of writing and hashing, assumed until a save was measured: a slow network folder."""
MARGIN = 1.25
"""Factor on the longest step and save so far, since their times vary."""


class SaveTimes(Protocol):
    """A saver's measurements: the longest save (0 if unknown), and whether a save is under way."""

    longest_seconds: float

    @property
    def is_writing(self) -> bool: ...


class TimeLimitCallback(TrainerCallback):
    """Measures steps and saves, and requests a stop when a further step and save no longer fit.

    Args:
        hours: the limit in hours; None sets no limit.
        checkpoint: bytes of a checkpoint, to estimate a save until one was measured.
        saver: measures the saves.
        elapsed: returns the seconds since the clock started; None uses `seconds_since_start`.
    """

    def __init__(
        self,
        hours: float | None,
        checkpoint: int,
        saver: SaveTimes,
        *,
        elapsed: Callable[[], float] | None = None,
    ) -> None:
        self.hours = hours
        self._saver = saver
        self._elapsed = elapsed or seconds_since_start
        self._estimate = checkpoint / SLOW_DISK
        self._steps: deque[float] = deque(maxlen=50)  # seconds of each
        self._began: float | None = None
        self._is_due = False  # a save follows this step

    def reason(self) -> str | None:
        """The reason to stop now, or None.

        The remaining time must suffice for a save, one more for each save that is due or under way,
        a step, and the exit.
        """
        if self.hours is None or not self._steps:
            return None
        limit = 3600 * self.hours
        save = MARGIN * (self._saver.longest_seconds or self._estimate)
        step = MARGIN * max(self._steps)
        # A save that is due waits for the save under way.
        saves = 1 + self._is_due + self._saver.is_writing
        needed = save * saves + step + min(60.0, 0.05 * limit)
        return f"train.max_hours={self.hours:g}" if self._elapsed() + needed >= limit else None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.hours is not None:
            self._is_due = False
            self._began = self._elapsed()

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._began is not None:
            self._steps.append(self._elapsed() - self._began)
        self._is_due = control.should_save


def seconds_since_start(
    environ: Mapping[str, str] = os.environ, stat: Path = Path("/proc/self/stat")
) -> float:
    """Seconds since the Slurm job started, else this process (by /proc, so imports count too)."""
    started = environ.get("SLURM_JOB_START_TIME", "")
    if started.isdecimal():
        return time.time() - int(started)
    # The program name in parentheses may hold any character: count the fields after it.
    fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
