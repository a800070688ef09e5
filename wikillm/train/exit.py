"""How a training process ends: one code, one reason, in RUN/exit.json too, since torchrun turns every code into 1."""

from __future__ import annotations

import time
from pathlib import Path

from wikillm.core.errors import ExitCode, WikiLLMError
from wikillm.core.files import write_json
from wikillm.core.log import logger

OTHERS_WAIT_SECONDS = 3.0  # the launchers kill the other ranks at the first failure: rank 0 gets to speak first


def exit_code_of(error: BaseException | None) -> ExitCode:
    """The exit code that an error means."""
    if error is None:
        return ExitCode.DONE
    return error.exit_code if isinstance(error, WikiLLMError) else ExitCode.BUG


def record_exit(run_dir: Path, error: BaseException | None, *, rank: int, step: int | None) -> None:
    """Write exit.json: rank 0 always, another rank only if nobody has. Never raises: the error itself matters more."""
    path = run_dir / "exit.json"
    if rank != 0:
        time.sleep(OTHERS_WAIT_SECONDS)
        if path.exists():
            return
    code = exit_code_of(error)
    try:
        if run_dir.is_dir():
            write_json(
                path,
                {
                    "code": int(code),
                    "meaning": code.name.lower(),
                    "reason": str(error) if error is not None else "the horizon was reached",
                    "rank": rank,
                    "step": step,
                    "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                },
            )
    except OSError as failure:
        logger.warning("could not write %s: %s", path, failure)
