"""Requests to stop by a signal or the end of the launcher; installed before torch is imported."""

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
    """Carries a StoppedError through libraries that catch Exception. `as_error` unwraps it."""

    def __init__(self, error: StoppedError) -> None:
        super().__init__(str(error))
        self.error = error


class _Watch:
    """A thread that notices signals at once, even while a library keeps handlers from running.

    The interpreter writes the number of each arriving signal into a pipe (signal.set_wakeup_fd).
    """

    def __init__(self) -> None:
        self.on_arrival: Callable[[int], None] = lambda number: None
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        # Signals to a forked child, which inherits the pipe, are not signals to this process.
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def _listen(self) -> None:
        while numbers := os.read(self._reader, 64):
            for number in numbers:
                self.on_arrival(number)


_watches: dict[int, _Watch] = {}  # by pid, since a forked child does not have the thread


def watch_signals(on_arrival: Callable[[int], None]) -> None:
    """Call `on_arrival(number)` in a thread for every signal that has a handler. (main thread)

    A later call replaces the function of an earlier one.
    """
    watch = _watches.get(os.getpid())
    if watch is None:
        watch = _watches[os.getpid()] = _Watch()
    watch.on_arrival = on_arrival


class StopSignals:
    """SIGTERM, SIGUSR1, SIGINT and SIGHUP as a request to save a checkpoint and stop.

    A second request ends the process at once. Until `defer()` is called, there is nothing to save,
    and a signal raises StopNow in the main thread. A library may catch this exception, or keep
    Python from raising it (in a rendezvous or a collective). So a thread ends the process if the
    exception has not ended it in time, or if training has not polled `received`.

    Launchers repeat a signal: Ctrl-C reaches the whole process group, then the launcher adds a
    SIGTERM. Repeats within `GRACE` seconds are the same request. A SIGHUP that is ignored at the
    start (nohup) stays ignored.
    """

    GRACE = 3.0
    LEAVE_SECONDS = 20.0  # from the exception until the process must have ended
    FIRST_STEP_SECONDS = 30.0  # for the first step, which may compile for minutes
    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)

    def __init__(self) -> None:
        # Called before this class ends the process, because no exception could be raised.
        self.before_exit: Callable[[StoppedError], None] = lambda error: None
        # Returns a reason to stop other than a signal, such as a time limit.
        self.limit: Callable[[], str | None] = lambda: None
        self._signal: str | None = None  # the reason to stop, once a handler has run
        self._requested: str | None = None  # the reason that `request` was given
        self._earlier: dict[int, Any] = {}  # by signal: the handler before `install`
        self._deferred = False
        self._has_stepped = False
        self._leaving = False  # an exception is propagating
        self._closed = False
        self._since = 0.0  # when the first handler ran
        self._arrived: float | None = None  # when the first signal arrived, handled or not

    @property
    def received(self) -> str | None:
        """Why this rank should stop: a signal's name, the end of the launcher, or the limit."""
        return self._signal or self.limit()

    def install(self) -> None:
        """Install the handlers. Call it again after libraries that install theirs. (main thread)"""
        for number in self.SIGNALS:
            before = signal.getsignal(number)
            if number == signal.SIGHUP and before is signal.SIG_IGN:
                continue
            self._earlier.setdefault(number, before)
            signal.signal(number, self._handle)
        watch_signals(self._on_arrival)

    def defer(self) -> None:
        """From now on a signal raises nothing; training polls `received`."""
        self._deferred = True

    def note_step(self) -> None:
        """Note that a step is done, so that an exit without a checkpoint would lose work."""
        self._has_stepped = True

    def request(self, why: str) -> None:
        """Stop as if a signal had arrived, for the reason `why`. Does nothing if a stop is under
        way. (any thread)"""
        if self._arrived is None and not self._closed:
            self._requested = why
            os.kill(os.getpid(), signal.SIGTERM)

    @contextmanager
    def as_error(self) -> Iterator[None]:
        """Raise StoppedError after a signal in the block, except for another error of WikiLLM."""
        try:
            yield
        except StopNow as stop:
            self._leaving = True
            raise stop.error from None
        except BaseException as error:
            self._leaving = True
            is_ours = isinstance(error, WikiLLMError) or not isinstance(error, Exception)
            if self._signal is not None and not self._deferred and not is_ours:
                raise self._stop_error(self._signal) from error  # such as an interrupted import
            raise

    def close(self) -> None:
        """Restore the handlers from before `install`. (main thread)"""
        self._closed = True
        watch_signals(lambda number: None)
        while self._earlier:
            number, handler = self._earlier.popitem()
            signal.signal(number, handler)

    def _stop_error(self, name: str) -> StoppedError:
        when = "in the first step" if self._deferred else "before training began"
        error = StoppedError(f"Stopped by {name} {when}; nothing is lost.")
        error.is_alone = True
        return error

    def _on_arrival(self, number: int) -> None:
        """Handle an arriving signal. The first one starts the time limits. (watching thread)"""
        if number not in self.SIGNALS or self._closed:
            return
        now = time.monotonic()
        if self._arrived is None:
            self._arrived = now
            name = self._requested or signal.Signals(number).name
            wait = self._end_if_ignored
            args = (name, now)
            threading.Thread(target=wait, args=args, name="stopping", daemon=True).start()
        elif now - self._arrived > self.GRACE:
            os._exit(ExitCode.STOPPED)

    def _end_if_ignored(self, name: str, since: float) -> None:
        """End the process if a library caught the exception, or it was not raised. (a thread)

        In training, end it if the first step takes longer than FIRST_STEP_SECONDS: without a step
        there is nothing to save.
        """
        while not self._closed and not self._has_stepped and not (self._deferred and self._leaving):
            limit = self.FIRST_STEP_SECONDS if self._deferred else self.GRACE
            if self._leaving:
                limit = self.LEAVE_SECONDS
            if time.monotonic() - since > limit:
                if not self._leaving:  # otherwise the error has been recorded
                    error = self._stop_error(name)
                    where = "in the first step" if self._deferred else "inside a library"
                    self.before_exit(error)
                    warn(f"{error.what} The process was {where}.")
                os._exit(ExitCode.STOPPED)
            time.sleep(0.1)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal in the main thread, once Python runs the handler."""
        now = time.monotonic()
        if self._signal is None:
            self._signal = self._requested or signal.Signals(number).name
            self._since = now
            if not self._deferred and not self._leaving:
                raise StopNow(self._stop_error(self._signal))
            logger.warning("received %s: stopping after this step", self._signal)
        elif now - self._since > self.GRACE:
            os._exit(ExitCode.STOPPED)


@contextmanager
def installed() -> Iterator[StopSignals]:
    """Raise StoppedError in the block at a signal or at the end of the launcher. (main thread)"""
    signals = StopSignals()
    try:
        signals.install()
        watch_launchers(signals.request)
        with signals.as_error():
            yield signals
    finally:
        signals.close()
