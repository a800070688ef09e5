"""Reports how a run ended: RUN/exit.json for programs, and one line on stderr for the user."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from wikillm.core.errors import ExitCode, WikiLLMError
from wikillm.core.faults import as_refusal
from wikillm.core.files import write_json
from wikillm.core.log import logger
from wikillm.supervise.alerts import event_of
from wikillm.supervise.membership import AGREED, End

OTHERS_WAIT_SECONDS = 8.0
"""Seconds that the other ranks give rank 0 to report first: launchers kill all ranks at an exit."""
_MAX_REASON = 8000
"""Characters; a compiler's output may be longer than a message to the coordinator can be."""


def end_with(error: BaseException | None) -> End:
    """How a process ends because of `error`; None: the run is done."""
    if error is None:
        return End(ExitCode.DONE, "the horizon was reached", event_of(ExitCode.DONE))
    refusal = as_refusal(error)
    code = ExitCode.BUG if refusal is None else refusal.exit_code
    reason = str(refusal or error) or type(error).__name__
    if len(reason) > _MAX_REASON:
        half = _MAX_REASON // 2
        reason = f"{reason[:half]} ... {reason[-half:]}"
    return End(code, reason, event_of(code), getattr(error, "lost_rank", None))


def write_exit(run: Path, end: End, rank: int, step: int | None, *, keep: bool = False) -> None:
    """Write exit.json on behalf of `rank`. Never raises, since the process has to exit.

    Args:
        keep: leave an existing file as it is.
    """
    path = run / "exit.json"
    try:
        if not run.is_dir() or (keep and path.exists()):
            return
        meaning = ExitCode(end.code).name.lower()
        result = {"code": int(end.code), "meaning": meaning, "reason": end.reason}
        where = {"rank": rank, "lost_rank": end.lost_rank, "step": step}
        write_json(path, {**result, **where, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
    except OSError as failure:
        logger.warning("could not write %s: %s", path, failure)


def print_end(end: End) -> None:
    """Print the verdict on stderr, like an error. Never raises: the terminal may be gone."""
    kinds = {ExitCode.STOPPED: "stopped", ExitCode.MACHINE: "MachineError"}
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{kinds.get(ExitCode(end.code), 'error')}: {end.reason}\n")
        sys.stderr.flush()


def is_common(error: BaseException | None) -> bool:
    """Whether errors of this type are raised by all ranks at the same step."""
    # The code of the type: `lost_rank` gives its MachineError the code of another rank.
    return isinstance(error, WikiLLMError) and type(error).exit_code in AGREED


def is_agreed(error: BaseException | None) -> bool:
    """Whether all ranks raise this error at the same step."""
    return is_common(error) and not getattr(error, "is_alone", False)


def let_rank_0_report_first(error: BaseException) -> None:
    """Wait, once for each error: rank 0 may have the same error, and then it should report it.

    When rank 0 exits, the launcher ends the other ranks.
    """
    is_main = os.environ.get("RANK", "0") in ("", "0")
    has_waited = getattr(error, "has_waited", False)
    if is_main or has_waited or is_common(error):
        return
    error.has_waited = True  # type: ignore[attr-defined]
    time.sleep(OTHERS_WAIT_SECONDS)
