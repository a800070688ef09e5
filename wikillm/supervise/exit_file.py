"""How a run ended: RUN/exit.json, once, in a form that programs read; and a line for the user."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from wikillm.core.errors import DivergedError, ExitCode, StoppedError
from wikillm.core.files import write_json
from wikillm.core.log import logger

OTHERS_WAIT_SECONDS = (
    8.0  # the launchers kill the other ranks at the first failure: rank 0 gets to speak first
)


def write_exit(
    run: Path, code: int, reason: str, rank: int, step: int | None, *, keep: bool = False
) -> None:
    """`keep`: an exit.json that is there already stays. Never raises: the end itself matters more."""
    path = run / "exit.json"
    try:
        if not run.is_dir() or (keep and path.exists()):
            return
        meaning = ExitCode(code).name.lower()
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_json(
            path,
            {
                "code": code,
                "meaning": meaning,
                "reason": reason,
                "rank": rank,
                "step": step,
                "time": when,
            },
        )
    except OSError as failure:
        logger.warning("could not write %s: %s", path, failure)


def say_end(code: int, reason: str) -> None:
    """On stderr, in the words of an error. Never raises: the terminal may be gone."""
    kind = {ExitCode.STOPPED: "stopped", ExitCode.MACHINE: "MachineError"}.get(
        ExitCode(code), "error"
    )
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{kind}: {reason}\n")
        sys.stderr.flush()


def is_agreed(error: BaseException | None) -> bool:
    """Do all ranks raise it, at the same step?"""
    return isinstance(error, DivergedError | StoppedError) and not getattr(error, "is_alone", False)


def let_rank_0_speak_first(error: BaseException) -> None:
    """Wait, once for each error: what all ranks meet is told by rank 0, whose launcher then ends the others."""
    is_main = os.environ.get("RANK", "0") in ("", "0")
    if (
        is_main
        or isinstance(error, DivergedError | StoppedError)
        or getattr(error, "has_waited", False)
    ):
        return
    error.has_waited = True  # type: ignore[attr-defined]
    time.sleep(OTHERS_WAIT_SECONDS)
