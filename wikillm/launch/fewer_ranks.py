"""Leaves out GPUs that are gone, or a rank that was lost twice, when one machine restarts a run.

A broken GPU may still be listed while every process on it fails. So a rank is left out too if two
starts in a row have lost it without a new checkpoint between them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from wikillm.checkpoints.lineage import Position
from wikillm.core.errors import ConfigError
from wikillm.core.files import read_object
from wikillm.core.log import say, warn
from wikillm.launch.description import Launch
from wikillm.supervise.requests import file_identity

_COUNT_SECONDS = 120.0


@dataclass
class LostRanks:
    """Remembers the rank that the last start lost."""

    _record: tuple[int, int] | None = None  # identity of the last exit.json
    _last: tuple[int, Position | None] | None = None  # the lost rank, the newest checkpoint then

    def lost_again(self, run: Path, reached: Position | None) -> int | None:
        """The rank that the last two starts lost, if it is one rank and nothing was saved between.

        Args:
            reached: position of the newest checkpoint.
        """
        path = run / "exit.json"
        record = file_identity(path)
        # Files from before 0.3 have no field `lost_rank`.
        rank = read_object(path).get("lost_rank") if record != self._record else None
        if type(rank) is not int or rank < 0:
            rank = None
        before = self._last
        self._record = record
        self._last = None if rank is None else (rank, reached)
        if rank is None or before != (rank, reached):
            return None
        self._last = None
        return rank


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
