"""Leaves out GPUs that are gone, or a rank that was lost twice, when one machine restarts a run.

A broken GPU may still be listed while every process on it fails. So restart.py also passes a rank
here that two starts in a row have lost, without a new checkpoint between them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from wikillm.core.errors import ConfigError
from wikillm.core.log import say, warn
from wikillm.launch.description import Launch

_COUNT_SECONDS = 120.0


def with_fewer_ranks(
    launch: Launch, lost: int | None, gpus: int | None, check: Callable[[Launch], None]
) -> Launch:
    """The launch without a lost rank and without GPUs that are gone.

    The batch stays the same. If it does not divide over the remaining ranks, fewer ranks are used.

    Args:
        lost: the rank to leave out, if any.
        gpus: number of GPUs on this machine now; None if the ranks use the CPU.
        check: raises ConfigError for a number of ranks that the run refuses.
    """
    total = launch.gpus or gpus
    if total is None:
        return launch
    used = list(launch.gpu_ids or range(total))
    remaining = list(used)
    if lost is not None and lost < len(remaining):
        del remaining[lost]
    if gpus is not None and remaining and remaining[-1] >= gpus:
        remaining = list(range(min(gpus, len(remaining))))  # the driver has renumbered the GPUs
    if remaining == used:
        return launch
    # Use the largest number of remaining ranks that the run accepts.
    why = "GPUs are gone" if lost is None else f"rank {lost} was lost twice in a row"
    for count in range(len(remaining), 0, -1):
        ids = tuple(remaining[:count]) if gpus is not None else ()
        fewer = replace(launch, gpus=count, gpu_ids=ids)
        with suppress(ConfigError):
            check(fewer)
            say(f"{why}: going on with {count} of {total} ranks")
            return fewer
    warn(f"{why}, and no smaller number of ranks can share the batch")
    return launch


def count_gpus() -> int | None:
    """Number of GPUs of this machine, counted by torch in a new process; None without a GPU."""
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COUNT_SECONDS)
        return int(done.stdout) or None
    return None
