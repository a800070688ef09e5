"""Holds back what libraries print while a run starts, and keeps it: `say` and `warn` still print.

File descriptors 1 and 2 go to memory, so that text from C++ and child processes is held too.
`log_to_file` moves the text into the rank's log. Where the start fails, the text is printed; a
small forked process does that where this one dies without a chance to.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from wikillm.core.printable import PrintableStream

_NAMES = ("stdout", "stderr")
_STANDARD = (1, 2)
_held: _Held | None = None


class _Held:
    """The standard output and error of this process, in memory. `real` are the descriptors."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._memory = os.memfd_create("wikillm-held-output")
        self.real = tuple(os.dup(number) for number in _STANDARD)
        self.streams = {
            name: os.fdopen(os.dup(real), "w", encoding=encoding, errors="replace")
            for name, real, encoding in zip(_NAMES, self.real, _encodings(), strict=True)
        }
        self._guard, self._pulse = self._fork_guard()
        _flush()
        append = os.open(f"/proc/self/fd/{self._memory}", os.O_WRONLY | os.O_APPEND)
        for number in _STANDARD:
            os.dup2(append, number)
        os.close(append)

    def _fork_guard(self) -> tuple[int, int]:
        """A process that prints the held text if this one ends without `release`."""
        waits, pulse = os.pipe()
        all_signals = signal.valid_signals()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, all_signals)
        try:
            guard = os.fork()
            if guard == 0:
                # It outlives every signal to the group; the closed pipe ends it.
                os.close(pulse)
                is_released = os.read(waits, 1) == b"r"
                if not is_released:
                    _copy(self._memory, self.real[1])
                os._exit(0)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(waits)
        return guard, pulse

    def release(self) -> bytes:
        """Restore the descriptors; returns what was held."""
        _flush()
        for number, real in zip(_STANDARD, self.real, strict=True):
            os.dup2(real, number)
        text = os.pread(self._memory, os.fstat(self._memory).st_size, 0)
        if os.getpid() == self._pid:
            with suppress(OSError):
                os.write(self._pulse, b"r")
                os.waitpid(self._guard, 0)
        for stream in self.streams.values():
            stream.close()
        for descriptor in (self._memory, self._pulse, *self.real):
            os.close(descriptor)
        return text


@contextmanager
def held_output() -> Iterator[None]:
    """Hold output back until `release_held`, or to the end of the block, which prints it."""
    global _held
    # A caller that has replaced the streams reads them itself.
    if all(_inner(name) is getattr(sys, f"__{name}__") for name in _NAMES):
        with suppress(OSError):  # no descriptor or process is left: nothing is held
            _held = _Held()
    try:
        yield
    finally:
        if text := release_held():
            with suppress(OSError):
                os.write(2, text)


def release_held() -> bytes:
    """End the hold; returns the text. b"" where nothing is held."""
    global _held
    held = _held
    _held = None
    return held.release() if held is not None else b""


def real_stream(name: str) -> object | None:
    """The stream that `name` (stdout, stderr) was before the hold; None where nothing is held."""
    return _held.streams[name] if _held is not None else None


def real_descriptors() -> tuple[int | None, int | None]:
    """Descriptors for the output and errors of a process that outlives the hold, as Popen takes
    them."""
    return (_held.real[0], _held.real[1]) if _held is not None else (None, None)


def discard_real(name: str) -> None:
    """The stream behind the hold cannot be written: what follows goes to /dev/null."""
    if _held is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, _held.real[_NAMES.index(name)])
        os.dup2(null, _held.streams[name].fileno())
        os.close(null)


def _inner(name: str) -> Any:
    stream = getattr(sys, name)
    return stream.wrapped if isinstance(stream, PrintableStream) else stream


def _encodings() -> tuple[str, ...]:
    return tuple(getattr(_inner(name), "encoding", None) or "utf-8" for name in _NAMES)


def _flush() -> None:
    for name in _NAMES:
        with suppress(OSError, ValueError):
            _inner(name).flush()


def _copy(memory: int, to: int) -> None:
    offset = 0
    with suppress(OSError):
        while piece := os.pread(memory, 1 << 16, offset):
            offset += os.write(to, piece)
