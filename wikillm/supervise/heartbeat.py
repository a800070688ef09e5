"""A rank's phase, step and last progress, in shared memory that the rank's agent reads.

The training process writes in a few microseconds, without a system call or a lock. Times are those
of CLOCK_MONOTONIC, which all processes of a machine share. Each phase has its own stall limit.
"""

from __future__ import annotations

import mmap
import os
import statistics
import struct
import time
from collections import deque
from dataclasses import dataclass

# fields: number of writes, phase, step, time of the last progress, median step in seconds
_LAYOUT = struct.Struct("<QQqdd")
_SLOTS = (64, 128)
"""Offsets of the two records in the page. Byte 0 is the index of the complete record."""
_SIZE = 4096
MEMORY_NAME = "wikillm-board"
"""The name in /proc/PID/fd by which `wikillm stop --now` recognizes ranks, older versions too."""
STEPS_REMEMBERED = 63  # for the median
STEPS_FACTOR = 10.0  # a step stalls after this many median steps

LIMITS: dict[str, float | None] = {
    "start": 1800.0,
    "store": None,  # a build has its own limit (data.stall_seconds) and its own errors
    "engine": 3600.0,  # DeepSpeed compiles here; 254 s were measured
    "model": 3600.0,
    "setup": 3600.0,  # DeepSpeed's engine, loading a checkpoint
    "supply": None,  # all ranks wait for streamed data, see train/wait_for_data.py
    "first step": 1800.0,  # kernels compile, connections are made
    "data": 0.0,  # 0: the larger of train.stall_seconds and STEPS_FACTOR x median step
    "step": 0.0,
    "evaluate": 1800.0,
    "save": 3600.0,
    "close": 600.0,
}
"""Seconds without progress after which a phase ends the run; None: no limit."""
PHASES = tuple(LIMITS)


@dataclass(frozen=True, slots=True)
class RankProgress:
    """The state of a rank when it was read.

    Attributes:
        standing: seconds since the last progress.
        median: duration of a step in seconds; 0 until two steps are done.
    """

    phase: str
    step: int
    standing: float
    median: float

    def limit(self, floor: float) -> float | None:
        """Stall limit of this phase in seconds; `floor` is train.stall_seconds."""
        limit = LIMITS[self.phase]
        return max(floor, STEPS_FACTOR * self.median) if limit == 0.0 else limit


class Heartbeat:
    """`Heartbeat()` creates the page of this process, `Heartbeat(fd)` maps that of another one."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create(MEMORY_NAME, 0) if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, _SIZE)
        self._page = mmap.mmap(self.fd, _SIZE)
        self._writes = 0
        self._phase = 0
        self._step = 0
        self._median = 0.0
        self._began: float | None = None  # start of the current step
        self._done = 0  # steps done by this engine
        self._durations: deque[float] = deque(maxlen=STEPS_REMEMBERED)
        if fd is None:
            self.enter("start")

    def enter(self, phase: str) -> None:
        """Mark the start of `phase`. Until two steps are done, "step" counts as "first step"."""
        now = time.monotonic()
        if self._done < 2:
            phase = {"step": "first step", "data": "setup"}.get(phase, phase)
        if phase in ("data", "setup"):
            self._began = now
        self._phase = PHASES.index(phase)
        self._write(now)

    def restart(self) -> None:
        """Count the next step as a first step, which may compile: the model is rebuilt."""
        self._done = 0

    def progress(self) -> None:
        """Mark progress within the phase, such as one batch of an evaluation."""
        self._write(time.monotonic())

    def step_done(self, step: int) -> None:
        """Mark the end of an optimizer step. The median leaves out the first one: it compiles."""
        now = time.monotonic()
        if self._began is not None and self._done:
            self._durations.append(now - self._began)
            self._median = statistics.median(self._durations)
        self._step = step
        self._done += 1
        self._began = None
        self._write(now)

    def _write(self, now: float) -> None:
        """Write the record that is not being read, then make it the current one by storing a byte.

        On a busy machine the process may be suspended for seconds between the two.
        """
        self._writes += 1
        slot = self._writes % 2
        values = (self._writes, self._phase, self._step, now, self._median)
        _LAYOUT.pack_into(self._page, _SLOTS[slot], *values)
        self._page[0] = slot

    def read(self) -> RankProgress:
        """The current state. Reads again if the record changed meanwhile."""
        for _ in range(100):
            slot = self._page[0]
            values = _LAYOUT.unpack_from(self._page, _SLOTS[slot])
            again = _LAYOUT.unpack_from(self._page, _SLOTS[slot])
            if values == again and slot == self._page[0]:
                break
        _, phase, step, progress, median = values
        return RankProgress(PHASES[phase], step, max(0.0, time.monotonic() - progress), median)
