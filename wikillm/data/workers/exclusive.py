"""One process at a time prepares; the others wait, show its progress, and raise its error.

The files are beside the store BASE: `BASE.lock` (flock, released when its holder ends),
`BASE.progress` (the newest progress line) and `BASE.failure` (the error of the holder). If the
holder fails, the processes that waited for it raise the same error, instead of repeating the work
on every rank.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wikillm.core.errors import ConfigError, DataError, MachineError, WikiLLMError
from wikillm.core.files import nearest_existing, write_json
from wikillm.core.lock import lock_or_wait
from wikillm.core.log import logger, say
from wikillm.core.units import format_seconds

_KINDS = {kind.__name__: kind for kind in (ConfigError, DataError, MachineError)}
_REPORT_SECONDS = 10.0


def beside(base: Path, suffix: str) -> Path:
    return base.with_name(base.name + suffix)


@contextmanager
def exclusive(base: Path, what: str, is_main: bool, about: str = "") -> Iterator[None]:
    """Hold the lock `base`. Raises the error of a holder that failed meanwhile. (all ranks)

    On a read-only disk nothing is locked: a finished store can still be opened, and a build fails
    with its own error.

    Args:
        what: the work, such as "preparing the data", for the log lines of the waiting ranks.
        is_main: whether this process prints the progress of the holder; other processes log it.
        about: subject of the work, if one lock guards several; only processes with the same
            subject raise the error of a failed holder.
    """
    folder = base.parent
    if not os.access(folder if folder.is_dir() else nearest_existing(folder), os.W_OK):
        yield
        return
    arrived = time.time()
    next_report = 0.0
    waited = False

    def on_wait(holder: str, seconds: float) -> None:
        nonlocal next_report, waited
        waited = True
        if seconds < next_report:
            return
        next_report = seconds + _REPORT_SECONDS
        line = f"{what}: waiting for {holder}, {format_seconds(seconds)} so far"
        with suppress(OSError):
            line += f" ({beside(base, '.progress').read_text().strip()})"
        say(line) if is_main else logger.info(line)

    with lock_or_wait(beside(base, ".lock"), on_wait):
        if waited and (failed := read_failure(base, arrived, about)) is not None:
            raise failed
        beside(base, ".failure").unlink(missing_ok=True)
        try:
            yield
        except WikiLLMError as error:
            write_failure(base, error, about)
            raise


def read_failure(base: Path, since: float, about: str = "") -> WikiLLMError | None:
    """The failure of the last holder, if it came after `since` (Unix time) and concerns `about`."""
    failure = beside(base, ".failure")
    try:
        if failure.stat().st_mtime < since - 1:
            return None
        found = json.loads(failure.read_text(encoding="utf-8"))
        return _KINDS[found["kind"]](*found["parts"]) if found.get("about", "") == about else None
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None


def write_failure(base: Path, error: WikiLLMError, about: str = "") -> None:
    """Write the error for the processes that wait for the lock `base`."""
    failure = {
        "kind": type(error).__name__,
        "parts": [error.what, error.got, error.fix],
        "about": about,
    }
    with suppress(OSError):
        write_json(beside(base, ".failure"), failure)
