"""One process at a time prepares; the others wait, see how far it is, and share its failure.

Files beside the store, named BASE: `BASE.lock` (flock, goes away with its holder), `BASE.progress` (its newest
line) and `BASE.failure` (why it gave up). Whoever waited for a holder that failed fails with the same error,
instead of doing the same work again on every rank.
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
_SAY_EVERY_SECONDS = 10.0


def beside(base: Path, suffix: str) -> Path:
    return base.with_name(base.name + suffix)


@contextmanager
def exclusive(base: Path, what: str, is_main: bool, about: str = "") -> Iterator[None]:
    """Hold the turn named `base`. Raises the failure of the holder that was waited for. (all ranks)

    Args:
        what: what is being done, for the waiting ranks: "preparing the data".
        about: what the turn is taken for, where it is taken for several things; a failure is shared by those who wait
            for the same thing.
        is_main: this process tells the user how far the holder is; the others write to their log only.
    """
    folder = base.parent
    if not os.access(folder if folder.is_dir() else nearest_existing(folder), os.W_OK):
        yield  # a finished store on a read-only disk can be opened without a turn; building will say what is wrong
        return
    arrived, said = time.time(), -_SAY_EVERY_SECONDS
    waited = False

    def on_wait(holder: str, seconds: float) -> None:
        nonlocal said, waited
        waited = True
        if seconds - said < _SAY_EVERY_SECONDS:
            return
        said = seconds
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
    """What the last holder of the turn `base` failed with, if that was after `since` (Unix time) and over `about`."""
    failure = beside(base, ".failure")
    try:
        if failure.stat().st_mtime < since - 1:
            return None
        found = json.loads(failure.read_text(encoding="utf-8"))
        return _KINDS[found["kind"]](*found["parts"]) if found.get("about", "") == about else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_failure(base: Path, error: WikiLLMError, about: str = "") -> None:
    """Tell whoever waits for the turn `base` why it failed."""
    with suppress(OSError):
        parts = [error.what, error.got, error.fix]
        write_json(
            beside(base, ".failure"), {"kind": type(error).__name__, "parts": parts, "about": about}
        )
