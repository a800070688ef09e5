"""What a rank is doing right now, in memory that its agent reads: phase, step, last progress, median step.

The training process writes (a few microseconds, no system call, no lock), the agent reads. Times are CLOCK_MONOTONIC, which
all processes of a machine share. Each phase has a limit of its own for standing still; only steps have a short one.
"""

from __future__ import annotations

import mmap
import os
import statistics
import struct
import time
from collections import deque
from dataclasses import dataclass

_LAYOUT = struct.Struct(
    "<QQqddd"
)  # writes begun, phase, step, phase since, last progress, median step in seconds
_SIZE = 4096
MEMORY_NAME = "wikillm-board"  # in /proc/PID/fd
STEPS_REMEMBERED = 63
STEPS_FACTOR = 10.0

LIMITS: dict[str, float | None] = {
    "start": 1800.0,
    "store": None,  # a build has its own limit (data.stall_seconds) and its own errors
    "engine": 3600.0,  # DeepSpeed compiles here; 254 s were measured
    "model": 3600.0,
    "setup": 3600.0,  # DeepSpeed's engine, loading a checkpoint
    "supply": None,  # all ranks wait for the builder in step, see train/wait_for_data.py
    "first step": 1800.0,  # kernels compile, connections are made
    "data": 0.0,  # 0: max(train.stall_seconds, 10 x median step)
    "step": 0.0,
    "evaluate": 1800.0,
    "save": 3600.0,
    "close": 600.0,
}
"""Seconds without progress in a phase after which the run is ended; None: never by the supervisor."""
PHASES = tuple(LIMITS)


@dataclass(frozen=True, slots=True)
class RankProgress:
    """A reading. `in_phase` and `standing` in seconds up to now; `median` is 0 until two steps are done."""

    phase: str
    step: int
    in_phase: float
    standing: float
    median: float

    def limit(self, floor: float) -> float | None:
        """Seconds it may stand still in this phase; `floor` is train.stall_seconds."""
        limit = LIMITS[self.phase]
        return max(floor, STEPS_FACTOR * self.median) if limit == 0.0 else limit


class Heartbeat:
    """The shared page. `Heartbeat()` makes one in this process, `Heartbeat(fd)` maps the one of another."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create(MEMORY_NAME, 0) if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, _SIZE)
        self._page = mmap.mmap(self.fd, _SIZE)
        self._writes, self._phase, self._step, self._since, self._median = (
            0,
            0,
            0,
            time.monotonic(),
            0.0,
        )
        self._began: float | None = None  # of the step under way
        self._done = 0
        self._durations: deque[float] = deque(maxlen=STEPS_REMEMBERED)
        if fd is None:
            self.enter("start")

    def enter(self, phase: str) -> None:
        """The rank begins something else. `step` before two steps are done is the "first step"."""
        now = time.monotonic()
        if phase == "step" and self._done < 2:
            phase = "first step"
        if phase == "data" and self._done < 2:
            phase = "setup"
        if phase in ("data", "setup"):
            self._began = now
        self._phase, self._since = PHASES.index(phase), now
        self._write(now)

    def progress(self) -> None:
        """Something was done in this phase: a batch of an evaluation."""
        self._write(time.monotonic())

    def step_done(self, step: int) -> None:
        """An optimizer step is complete. The first one of a process does not count for the median: it compiles."""
        now = time.monotonic()
        if self._began is not None and self._done:
            self._durations.append(now - self._began)
            self._median = statistics.median(self._durations)
        self._step, self._done, self._began = step, self._done + 1, None
        self._write(now)

    def _write(self, now: float) -> None:
        self._writes += 1
        _LAYOUT.pack_into(
            self._page, 0, self._writes, self._phase, self._step, self._since, now, self._median
        )

    def read(self) -> RankProgress:
        """The state now; a torn read shows in the number of writes and is repeated."""
        for _ in range(100):
            values = _LAYOUT.unpack_from(self._page, 0)
            if values == _LAYOUT.unpack_from(self._page, 0) and values[1] < len(PHASES):
                break
        _, phase, step, since, progress, median = values
        now = time.monotonic()
        return RankProgress(
            PHASES[phase], step, max(0.0, now - since), max(0.0, now - progress), median
        )
