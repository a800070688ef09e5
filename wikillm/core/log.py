"""What a run says: rank 0 to the terminal, every rank to its own file once the run directory is known.

`say` is for lines a user reads (progress, decisions, results); it prints on rank 0 only. `logging` is for
everything else. Output survives a closed terminal or a locale without UTF-8: training never dies of a print.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from wikillm.core.printable import PrintableStream, printable

logger = logging.getLogger("wikillm")
logger.addHandler(logging.NullHandler())  # without any handler, Python would print warnings a second time


def _is_main() -> bool:
    return os.environ.get("RANK", "0") in ("", "0")


def make_output_safe() -> None:
    """Replace what the terminal cannot show instead of raising UnicodeEncodeError, show control characters instead of
    sending them, write line by line."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, PrintableStream):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace", line_buffering=True)
        setattr(sys, name, PrintableStream(stream, returns=name == "stderr"))


def say(message: str = "", *, end: str = "\n") -> None:
    """Print for the user (rank 0 only), and keep it in the rank's log file."""
    logger.info(message.strip())
    if not _is_main():
        return
    try:
        stream = sys.stdout.wrapped if isinstance(sys.stdout, PrintableStream) else sys.stdout
        stream.write(printable(message) + end)  # `end` may be the carriage return of a progress line
        stream.flush()
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  the reader went away; the run goes on


def warn(message: str) -> None:
    """A line that starts with "warning:" (rank 0 only), and a record in the log file of every rank."""
    logger.warning(message)
    if _is_main():
        try:
            sys.stderr.write(f"warning: {printable(message)}\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115


class _PrintableFormatter(logging.Formatter):
    """Records that can be looked at in a terminal, whatever text of others is in them."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def log_to_file(path: Path) -> None:
    """Send everything that `logging` hears in this process to `path`, appending. (all ranks, each its own file)"""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
