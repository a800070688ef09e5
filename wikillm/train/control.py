"""What all ranks agree on, outside the training collectives: stop now, stop because of NaN, leave together.

Agreement runs on a gloo group of its own, on CPU: it costs well under a millisecond per optimizer step, never
waits for a GPU, and does not get in the way of NCCL. With one rank it is a no-op.
"""

from __future__ import annotations

import os
import signal
import threading
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


class _Watch:
    """A thread that hears of signals as they arrive, also while the main thread is in a library and runs no handler.

    The interpreter writes each signal's number into a pipe (signal.set_wakeup_fd) before any handler in Python runs.
    """

    def __init__(self) -> None:
        self.on_arrival: Callable[[int], None] = lambda number: None
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a child's signals are not ours
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def _listen(self) -> None:
        while numbers := os.read(self._reader, 64):
            for number in numbers:
                self.on_arrival(number)


_watches: dict[int, _Watch] = {}  # by process: a fork has no thread


def watch_signals(on_arrival: Callable[[int], None]) -> None:
    """Call `on_arrival(number)` in a thread for every signal with a handler. The last caller is told. (main thread)"""
    watch = _watches.get(os.getpid())
    if watch is None:
        watch = _watches[os.getpid()] = _Watch()
    watch.on_arrival = on_arrival


class StopSignals:
    """SIGTERM, SIGUSR1 and SIGINT as a request to stop after a complete checkpoint; a second one stops at once.

    Until `defer()` is called a signal raises StoppedError where the process stands: there is nothing to save yet. Where
    it stands in a rendezvous or a collective, Python gets no turn to raise anything, and the launcher's SIGTERM, when
    another rank was refused, would be lost until its SIGKILL: a thread ends the process then. Launchers repeat a signal
    within moments (Ctrl-C reaches the whole process group, then the launcher adds a SIGTERM), so repeats within `GRACE`
    seconds are the same request.
    """

    GRACE = 3.0
    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.before_exit: Callable[[StoppedError], None] = lambda error: None  # of a process that cannot raise it
        self.limit: Callable[[], str | None] = lambda: None  # another reason to stop, asked whenever signals are
        self._signal: str | None = None
        self._deferred = False
        self._since = 0.0
        self._arrived: float | None = None  # of the first signal, whether or not the main thread has noticed

    @property
    def received(self) -> str | None:
        """What asks this rank to stop: a signal's name, or the limit's."""
        return self._signal or self.limit()

    def install(self) -> None:
        """Take over the signals; call it again after libraries that install handlers of their own."""
        for number in self.SIGNALS:
            signal.signal(number, self._handle)
        watch_signals(self._on_arrival)

    def defer(self) -> None:
        """From now on a signal is remembered (`received`) instead of raised: training polls it."""
        self._deferred = True

    def _stopped(self, number: int) -> StoppedError:
        return StoppedError(f"Stopped by {signal.Signals(number).name} before training began; nothing is lost.")

    def _on_arrival(self, number: int) -> None:
        """In the watching thread: end the process where the main one does not come to it. The first signal counts."""
        if number not in self.SIGNALS:
            return
        now = time.monotonic()
        if self._arrived is not None:
            if now - self._arrived > self.GRACE:
                os._exit(ExitCode.STOPPED)
            return
        self._arrived = now
        while not self._deferred and self._signal is None:
            if time.monotonic() - now > self.GRACE:
                self.before_exit(self._stopped(number))
                warn(
                    f"Stopped by {signal.Signals(number).name} before training began, while it waited inside a library."
                )
                os._exit(ExitCode.STOPPED)
            time.sleep(0.1)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if self._signal is None:
            self._signal, self._since = name, now
            if not self._deferred:
                raise self._stopped(number)
            logger.warning("received %s: stopping after this step", name)
        elif now - self._since > self.GRACE:
            os._exit(ExitCode.STOPPED)
