"""Output of a run: rank 0 prints to the terminal, every rank logs to a file in the run directory.

`say` and `warn` print lines for the user (progress, decisions, results) on rank 0, and log them.
Other lines only go through `logging`. A closed terminal, a full disk or a locale without UTF-8
never ends a run.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from wikillm.core.held_output import discard_real, real_stream, release_held
from wikillm.core.printable import PrintableStream, printable

logger = logging.getLogger("wikillm")
logger.addHandler(logging.NullHandler())  # without a handler, Python prints warnings itself


def _is_main() -> bool:
    return os.environ.get("RANK", "0") in ("", "0")


def make_output_safe() -> None:
    """Replace characters that stdout and stderr cannot encode, and escape control characters.

    A stream that the caller closed (`>&-`) becomes /dev/null. Otherwise the next opened file would
    get the stream's descriptor, and C++ code would print into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is `number`
        if getattr(sys, name) is None:
            _discard(name, "w" if number else "r")
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, PrintableStream):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace", line_buffering=True)
        setattr(sys, name, PrintableStream(stream, keeps_returns=name == "stderr"))


def drop_output(number: int) -> None:
    """Redirect descriptor 1 or 2 to /dev/null, so that the flush at interpreter exit succeeds."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


_lost_output: OSError | None = None


def lost_output() -> OSError | None:
    """The error because of which `say` could not print; None if every line was printed."""
    return _lost_output


_show_status: Callable[[str], None] | None = None
"""The function that shows progress lines while a live view is on the terminal."""


def show_status_with(show: Callable[[str], None] | None) -> None:
    """Pass progress lines (`say` with a carriage return) to `show` instead of printing them."""
    global _show_status
    _show_status = show


def log_only(message: str) -> None:
    """Log to the rank's file, without printing."""
    logger.info(message.strip())


def say(message: str = "", *, end: str = "\n") -> None:
    """Print for the user (rank 0 only), and log to the rank's file.

    `end` may be the carriage return of a progress line.
    """
    logger.info(message.strip())
    if end == "\r" and _show_status is not None:
        _show_status(message.strip())
    elif _is_main():
        stream = _stream("stdout")
        inner = stream.wrapped if isinstance(stream, PrintableStream) else stream
        _write("stdout", inner, printable(message) + end)


@contextmanager
def timed(message: str, every: float = 1.0) -> Iterator[None]:
    """Print `message` for work that cannot report its own progress, such as an import.

    On a terminal, the elapsed time is added every `every` seconds until the block ends.
    """
    if not (_is_main() and _stream("stdout").isatty()):
        say(message)
        yield
        return
    ended = threading.Event()
    start = time.monotonic()

    def tick() -> None:
        while not ended.wait(every):
            say(f"{message}, {time.monotonic() - start:.0f} s", end="\r")

    ticking = threading.Thread(target=tick, daemon=True)
    say(message, end="\r")
    ticking.start()
    try:
        yield
    finally:
        ended.set()
        ticking.join()
        say(f"{message}, {time.monotonic() - start:.0f} s")


def warn(message: str) -> None:
    """Print "warning: ..." to stderr (rank 0 only), and log it to the file of every rank."""
    logger.warning(message)
    if _is_main():
        _write("stderr", _stream("stderr"), f"warning: {printable(message)}\n")


def _stream(name: str) -> Any:
    """The stream for lines to the user: the original stdout or stderr while output is held back."""
    return real_stream(name) or getattr(sys, name)


def _write(name: str, stream: Any, text: str) -> None:
    """Write to a standard stream. If that fails, warn, and discard all later output to it."""
    global _lost_output
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError) as error:
        discard_real(name)
        if getattr(stream, "wrapped", stream) is getattr(sys, f"__{name}__"):
            drop_output(1 if name == "stdout" else 2)
        _discard(name)
        if name == "stdout" and isinstance(error, OSError):
            _lost_output = error
        if isinstance(error, BrokenPipeError):
            return
        reason = error.strerror if isinstance(error, OSError) else str(error)
        message = f"{name} cannot be written ({reason}): its output is discarded from here on"
        if name == "stdout":
            warn(message)
        else:
            logger.warning(message)


def _discard(name: str, mode: str = "w") -> None:
    setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


class _RankFile(logging.FileHandler):
    """A log file whose first failure is reported in one line, without a traceback."""

    _has_warned = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._has_warned:
            self._has_warned = True
            reason = sys.exc_info()[1]
            with suppress(OSError, ValueError):
                sys.stderr.write(f"warning: {self.baseFilename} cannot be written ({reason})\n")

    def close(self) -> None:
        with suppress(OSError):  # the last lines may not fit on the disk
            super().close()


class _PrintableFormatter(logging.Formatter):
    """Formats records: applies `clean` (which removes secrets), then escapes control characters."""

    def __init__(self, clean: Callable[[str], str], form: str) -> None:
        super().__init__(form)
        self._clean = clean

    def format(self, record: logging.LogRecord) -> str:
        return printable(self._clean(super().format(record)))


def log_to_file(path: Path, clean: Callable[[str], str] = str) -> None:
    """Append every `logging` record of this process to `path`. (all ranks)

    Each record passes through `clean`, which removes secrets.

    Output that was held back until now (see `held_output`) becomes the first record.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _RankFile(path, encoding="utf-8")
    handler.setFormatter(
        _PrintableFormatter(clean, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if text := release_held().decode(errors="replace").strip():
        logger.info("printed while the run started:\n%s", text)
