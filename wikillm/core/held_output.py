"""Hold back what libraries print while a run starts; `say` and `warn` still print.

File descriptors 1 and 2 are redirected to memory, so that the output of C++ code and of child
processes is held too. `log_to_file` moves the held text to the rank's log. If the start fails, the
text is printed. If this process is killed, a small forked process prints the text.
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
    """Redirects standard output and error to memory. `real` are duplicates of the original
    descriptors."""

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
        """Fork a process that prints the held text if this process ends without `release`."""
        waits, pulse = os.pipe()
        all_signals = signal.valid_signals()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, all_signals)
        try:
            guard = os.fork()
            if guard == 0:
                # The guard blocks all signals. It ends when the parent writes to the pipe, or dies.
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
        """Restore the descriptors. Returns the held text."""
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
    """Hold output back until `release_held` is called. Otherwise the end of the block prints it."""
    global _held
    # A caller that has replaced the streams reads the output itself, so nothing is held.
    if all(_unwrapped(name) is getattr(sys, f"__{name}__") for name in _NAMES):
        with suppress(OSError):  # without a free descriptor or process, hold nothing
            _held = _Held()
    try:
        yield
    finally:
        if text := release_held():
            with suppress(OSError):
                os.write(2, text)


def release_held() -> bytes:
    """End the hold. Returns the held text; b"" if nothing is held."""
    global _held
    held = _held
    _held = None
    return held.release() if held is not None else b""


def real_stream(name: str) -> object | None:
    """The original stream of `name` (stdout, stderr) during a hold; None if nothing is held."""
    return _held.streams[name] if _held is not None else None


def real_descriptors() -> tuple[int | None, int | None]:
    """Original descriptors of stdout and stderr, for Popen of a process that outlives the hold."""
    return (_held.real[0], _held.real[1]) if _held is not None else (None, None)


def discard_real(name: str) -> None:
    """Redirect the original stream of `name`, which cannot be written, to /dev/null."""
    if _held is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, _held.real[_NAMES.index(name)])
        os.dup2(null, _held.streams[name].fileno())
        os.close(null)


def _unwrapped(name: str) -> Any:
    stream = getattr(sys, name)
    return stream.wrapped if isinstance(stream, PrintableStream) else stream


def _encodings() -> tuple[str, ...]:
    return tuple(getattr(_unwrapped(name), "encoding", None) or "utf-8" for name in _NAMES)


def _flush() -> None:
    for name in _NAMES:
        with suppress(OSError, ValueError):
            _unwrapped(name).flush()


def _copy(memory: int, to: int) -> None:
    offset = 0
    with suppress(OSError):
        while piece := os.pread(memory, 1 << 16, offset):
            offset += os.write(to, piece)
