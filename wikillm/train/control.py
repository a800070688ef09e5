"""What all ranks agree on, outside the training collectives: stop now, stop because of NaN, leave together.

Agreement runs on a gloo group of its own, on CPU: it costs well under a millisecond per optimizer step, never
waits for a GPU, and does not get in the way of NCCL. With one rank it is a no-op.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

from wikillm.core.errors import ExitCode, StoppedError
from wikillm.core.log import logger, warn


class ControlGroup:
    """Small collectives among all ranks. Make it once, after the process group exists. (all ranks)"""

    def __init__(self, timeout_seconds: float = 1800.0) -> None:
        self.active = dist.is_initialized() and dist.get_world_size() > 1
        self._group = None
        if self.active:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag: does any rank have it set? (all ranks, the same number of flags)"""
        if not self.active:
            return flags
        votes = torch.tensor([int(flag) for flag in flags], dtype=torch.int32)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group)
        return tuple(bool(vote) for vote in votes.tolist())

    def sum(self, *values: float) -> tuple[float, ...]:
        """Sums over all ranks, in float64. (all ranks)"""
        if not self.active:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return tuple(total.tolist())

    def gather(self, value: object) -> list[object]:
        """Every rank's value, on every rank. (all ranks)"""
        if not self.active:
            return [value]
        values: list[object] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self._group)
        return values

    def barrier(self) -> None:
        """Wait for all ranks. (all ranks)"""
        if self.active:
            dist.barrier(group=self._group)

    def leave_together(self, timeout_seconds: float) -> None:
        """Wait, at most so long, until every rank is about to exit. (all ranks)

        The `deepspeed` launcher kills the other ranks of a node at the first non-zero exit; without this, rank 0
        could lose its closing work to a faster neighbour. Never raises.
        """
        if not self.active:
            return
        try:
            dist.monitored_barrier(group=self._group, timeout=timedelta(seconds=timeout_seconds))
        except RuntimeError as error:
            warn(f"not every rank reached the end within {timeout_seconds:.0f} s: {str(error).splitlines()[0]}")


class StopSignals:
    """SIGTERM, SIGUSR1 and SIGINT as a request to stop after a complete checkpoint; a second one stops at once.

    Until `defer()` is called a signal raises StoppedError where the process stands: there is nothing to save yet.
    Launchers repeat a signal within moments (Ctrl-C reaches the whole process group, then the launcher adds a
    SIGTERM), so repeats within `GRACE` seconds are the same request.
    """

    GRACE = 3.0
    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.limit: Callable[[], str | None] = lambda: None  # another reason to stop, asked whenever signals are
        self._signal: str | None = None
        self._deferred = False
        self._since = 0.0

    @property
    def received(self) -> str | None:
        """What asks this rank to stop: a signal's name, or the limit's."""
        return self._signal or self.limit()

    def install(self) -> None:
        """Take over the signals; call it again after libraries that install handlers of their own."""
        for number in self.SIGNALS:
            signal.signal(number, self._handle)

    def defer(self) -> None:
        """From now on a signal is remembered (`received`) instead of raised: training polls it."""
        self._deferred = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if self._signal is None:
            self._signal, self._since = name, now
            if not self._deferred:
                raise StoppedError(f"Stopped by {name} before training began; nothing is lost.")
            logger.warning("received %s: stopping after this step", name)
        elif now - self._since > self.GRACE:
            os._exit(ExitCode.STOPPED)
