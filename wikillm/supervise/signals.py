"""Requests to stop, from signals and the end of the launcher; installed before torch loads."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from wikillm.core.errors import ExitCode, StoppedError, WikiLLMError
from wikillm.core.log import logger, warn
from wikillm.supervise.launchers import watch_launchers


class StopNow(BaseException):
    """Carries a StoppedError through libraries that catch Exception, up to `as_error`."""

    def __init__(self, error: StoppedError) -> None:
        super().__init__(str(error))
        self.error = error


class _Watch:
    """A thread that learns of signals at once, also while a library keeps handlers from running.

    The interpreter writes each signal's number into a pipe (signal.set_wakeup_fd) at its arrival.
    """

    def __init__(self) -> None:
        self.on_arrival: Callable[[int], None] = lambda number: None
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        # Signals to a forked child are not signals to this process.
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def _listen(self) -> None:
        while numbers := os.read(self._reader, 64):
            for number in numbers:
                self.on_arrival(number)


_watches: dict[int, _Watch] = {}  # by pid: a forked child does not have the thread


def watch_signals(on_arrival: Callable[[int], None]) -> None:
    """Call `on_arrival(number)` in a thread for every signal with a handler. (main thread)

    A later call replaces `on_arrival`.
    """
    watch = _watches.get(os.getpid())
    if watch is None:
        watch = _watches[os.getpid()] = _Watch()
    watch.on_arrival = on_arrival


class StopSignals:
    """SIGTERM, SIGUSR1, SIGINT and SIGHUP as a request to save a checkpoint and stop.

    A second request stops at once. Until `defer()` is called, a signal raises StopNow where the
    process is: there is nothing to save yet. A library may swallow the exception, or keep Python
    from raising it (a rendezvous, a collective). So a thread ends the process unless the
    exception leaves it, or training polls `received`, in time.

    Launchers repeat a signal (Ctrl-C reaches the whole process group, then the launcher adds a
    SIGTERM): repeats within `GRACE` seconds are the same request. A SIGHUP that is ignored at the
    start (nohup) stays ignored.
    """

    GRACE = 3.0
    LEAVE_SECONDS = 20.0  # from the exception until the process must have ended
    FIRST_STEP_SECONDS = 30.0  # the first step may compile for minutes; without it nothing is lost
    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)

    def __init__(self) -> None:
        # called before the process is ended where the exception cannot be raised
        self.before_exit: Callable[[StoppedError], None] = lambda error: None
        # another reason to stop, polled together with signals
        self.limit: Callable[[], str | None] = lambda: None
        self._signal: str | None = None
        self._why: str | None = None  # reason for a signal that this process sent to itself
        self._before: dict[int, Any] = {}  # handlers, by signal
        self._deferred = False
        self._polled = False
        self._leaving = False  # an exception is propagating
        self._closed = False
        self._since = 0.0
        self._arrived: float | None = None  # when the first signal came, handled or not

    @property
    def received(self) -> str | None:
        """Why this rank should stop: a signal's name, the end of the launcher, or the limit."""
        return self._signal or self.limit()

    def install(self) -> None:
        """Install the handlers; again after libraries that install their own. (main thread)"""
        for number in self.SIGNALS:
            before = signal.getsignal(number)
            if number == signal.SIGHUP and before is signal.SIG_IGN:
                continue
            self._before.setdefault(number, before)
            signal.signal(number, self._handle)
        watch_signals(self._on_arrival)

    def defer(self) -> None:
        """From now on a signal sets `received` instead of raising: training polls it."""
        self._deferred = True

    def polled(self) -> None:
        """A step is done: from now on, an exit without a checkpoint would lose work."""
        self._polled = True

    def request(self, why: str) -> None:
        """Stop as a signal would, for the reason `why`; the first request counts. (any thread)"""
        if self._arrived is None and not self._closed:
            self._why = why
            os.kill(os.getpid(), signal.SIGTERM)

    @contextmanager
    def as_error(self) -> Iterator[None]:
        """Raise StoppedError for a signal in the block, unless another error is propagating."""
        try:
            yield
        except StopNow as stop:
            self._leaving = True
            raise stop.error from None
        except BaseException as error:
            self._leaving = True
            is_ours = isinstance(error, WikiLLMError) or not isinstance(error, Exception)
            if self._signal is not None and not self._deferred and not is_ours:
                raise self._stopped(self._signal) from error  # such as an interrupted import
            raise

    def close(self) -> None:
        """Restore the handlers from before `install`. (main thread)"""
        self._closed = True
        watch_signals(lambda number: None)
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _stopped(self, name: str) -> StoppedError:
        when = "in the first step" if self._deferred else "before training began"
        error = StoppedError(f"Stopped by {name} {when}; nothing is lost.")
        error.is_alone = True
        return error

    def _on_arrival(self, number: int) -> None:
        """Handle a signal in the watching thread. The first signal starts the time limits."""
        if number not in self.SIGNALS or self._closed:
            return
        now = time.monotonic()
        if self._arrived is None:
            self._arrived = now
            name = self._why or signal.Signals(number).name
            wait = self._end_if_ignored
            args = (name, now)
            threading.Thread(target=wait, args=args, name="stopping", daemon=True).start()
        elif now - self._arrived > self.GRACE:
            os._exit(ExitCode.STOPPED)

    def _end_if_ignored(self, name: str, since: float) -> None:
        """End the process if the exception was swallowed or never raised.

        In training, also end it if the first step takes longer than FIRST_STEP_SECONDS.
        """
        while not self._closed and not self._polled and not (self._deferred and self._leaving):
            limit = self.FIRST_STEP_SECONDS if self._deferred else self.GRACE
            if time.monotonic() - since > (self.LEAVE_SECONDS if self._leaving else limit):
                if not self._leaving:  # otherwise the error has been recorded
                    error = self._stopped(name)
                    where = "in the first step" if self._deferred else "inside a library"
                    self.before_exit(error)
                    warn(f"{error.what} The process was {where}.")
                os._exit(ExitCode.STOPPED)
            time.sleep(0.1)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal is None:
            self._signal = self._why or signal.Signals(number).name
            self._since = now
            if not self._deferred and not self._leaving:
                raise StopNow(self._stopped(self._signal))
            logger.warning("received %s: stopping after this step", self._signal)
        elif now - self._since > self.GRACE:
            os._exit(ExitCode.STOPPED)


@contextmanager
def installed() -> Iterator[StopSignals]:
    """Raise StoppedError in the block for a signal or the end of the launcher. (main thread)"""
    signals = StopSignals()
    try:
        signals.install()
        watch_launchers(signals.request)
        with signals.as_error():
            yield signals
    finally:
        signals.close()
