"""How a run ended: RUN/exit.json, once, in a form that programs read; and a line for the user."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path

from wikillm.core.errors import ExitCode
from wikillm.core.files import write_json
from wikillm.core.log import logger


def write_exit(run: Path, code: int, reason: str, rank: int, step: int | None, *, keep: bool = False) -> None:
    """`keep`: an exit.json that is there already stays. Never raises: the end itself matters more."""
    path = run / "exit.json"
    try:
        if not run.is_dir() or (keep and path.exists()):
            return
        meaning = ExitCode(code).name.lower()
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_json(path, {"code": code, "meaning": meaning, "reason": reason, "rank": rank, "step": step, "time": when})
    except OSError as failure:
        logger.warning("could not write %s: %s", path, failure)


def say_end(code: int, reason: str) -> None:
    """On stderr, in the words of an error. Never raises: the terminal may be gone."""
    kind = {ExitCode.STOPPED: "stopped", ExitCode.MACHINE: "MachineError"}.get(ExitCode(code), "error")
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{kind}: {reason}\n")
        sys.stderr.flush()
