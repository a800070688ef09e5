"""What a run says: rank 0 to the terminal, every rank to its own file once the run directory is known.

`say` is for lines a user reads (progress, decisions, results); it prints on rank 0 only. `logging` is for
everything else. Output survives a closed terminal or a locale without UTF-8: training never dies of a print.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from wikillm.core.printable import PrintableStream, printable

logger = logging.getLogger("wikillm")
logger.addHandler(
    logging.NullHandler()
)  # without any handler, Python would print warnings a second time


def _is_main() -> bool:
    return os.environ.get("RANK", "0") in ("", "0")


def make_output_safe() -> None:
    """Replace what the terminal cannot show instead of raising UnicodeEncodeError, show control characters instead of
    sending them, write line by line.

    A stream that the caller closed (`>&-`) becomes /dev/null: Python leaves None in its place, and the next file that
    is opened would get its number, with everything that C++ prints.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, PrintableStream):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace", line_buffering=True)
        setattr(sys, name, PrintableStream(stream, returns=name == "stderr"))


def drop_output(number: int) -> None:
    """Send file descriptor 1 or 2 to /dev/null, so that the interpreter's last flush does not fail either."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


def say(message: str = "", *, end: str = "\n") -> None:
    """Print for the user (rank 0 only), and keep it in the rank's log file.

    Where the output cannot be written (the reader went away, the disk behind it is full) the run goes on without it.
    """
    logger.info(message.strip())
    if not _is_main():
        return
    try:
        stream = sys.stdout.wrapped if isinstance(sys.stdout, PrintableStream) else sys.stdout
        stream.write(
            printable(message) + end
        )  # `end` may be the carriage return of a progress line
        stream.flush()
    except (OSError, ValueError) as error:
        _go_silent("stdout", 1, error)


def warn(message: str) -> None:
    """A line that starts with "warning:" (rank 0 only), and a record in the log file of every rank."""
    logger.warning(message)
    if _is_main():
        try:
            sys.stderr.write(f"warning: {printable(message)}\n")
            sys.stderr.flush()
        except (OSError, ValueError) as error:
            _go_silent("stderr", 2, error)


def _go_silent(name: str, number: int, error: OSError | ValueError) -> None:
    """Write no more to a stream that failed, and say so once where it can still be read."""
    stream = getattr(sys, name)
    if getattr(stream, "wrapped", stream) is getattr(sys, f"__{name}__"):
        drop_output(number)
    setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if not isinstance(error, BrokenPipeError):
        reason = error.strerror if isinstance(error, OSError) else str(error)
        message = f"{name} cannot be written ({reason}): nothing more is shown there, and the work goes on"
        logger.warning(message)
        if name == "stdout":
            warn(message)


class _RankFile(logging.FileHandler):
    """A log file that may fail: only the first failure is reported, in one line and without a traceback."""

    _has_warned = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._has_warned:
            self._has_warned = True
            reason = sys.exc_info()[1]
            with suppress(OSError, ValueError):
                sys.stderr.write(f"warning: {self.baseFilename} cannot be written ({reason})\n")

    def close(self) -> None:
        with suppress(OSError):  # the last lines did not fit on the disk
            super().close()


class _PrintableFormatter(logging.Formatter):
    """Records that can be looked at in a terminal, whatever text of others is in them."""

    def __init__(self, clean: Callable[[str], str], form: str) -> None:
        super().__init__(form)
        self._clean = clean

    def format(self, record: logging.LogRecord) -> str:
        return printable(self._clean(super().format(record)))


def log_to_file(path: Path, clean: Callable[[str], str] = str) -> None:
    """Send every `logging` record of this process to `path`, appending, each record through `clean`.

    (all ranks, each its own file)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _RankFile(path, encoding="utf-8")
    handler.setFormatter(
        _PrintableFormatter(clean, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
