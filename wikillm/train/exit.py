"""Ends a training process with one exit code and one reason, both recorded in RUN/exit.json.

torchrun turns every non-zero exit code into 1, so only the file has the real code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch.distributed as dist

from wikillm.core.lock import FileLock
from wikillm.core.world import World
from wikillm.observe.redact import without_queries
from wikillm.report.page import refresh_page
from wikillm.supervise.exit_file import (
    end_with,
    is_agreed,
    is_common,
    let_rank_0_report_first,
    write_exit,
)
from wikillm.train.collectives import ControlGroup


def record_exit(run_dir: Path, error: BaseException | None, *, rank: int, step: int | None) -> None:
    """Write exit.json: rank 0 always, other ranks only if the file is missing. Never raises."""
    path = run_dir / "exit.json"
    if rank != 0:
        if error is None or is_common(error):
            return  # rank 0 ends the same way, and writes the file
        let_rank_0_report_first(error)
        if path.exists():
            return
    end = end_with(error)
    write_exit(run_dir, replace(end, reason=without_queries(end.reason)), rank, step)


@dataclass(slots=True)
class Ending:
    """Objects that `ending` uses at the end of the run; each is set once it exists.

    Attributes:
        group: for the common exit; None before the process group exists.
        lock: on the run directory; None on ranks other than 0.
        step: returns the optimizer steps done; None until training has begun.
    """

    group: ControlGroup | None = None
    lock: FileLock | None = None
    step: Callable[[], int | None] = lambda: None


@contextmanager
def ending(
    run_dir: Path, world: World, timeout_seconds: float, close: Callable[[], None] = lambda: None
) -> Iterator[Ending]:
    """Record how the block ended; wait for the other ranks when all end in the same way.

    A normal end and a divergence are common to all ranks. Any other error may be this rank's alone:
    this rank exits at once, so that the launcher ends the other ranks, which would otherwise wait
    in a collective.

    Args:
        close: called at any end of the block, to stop background work.
    """
    end = Ending()
    error: BaseException | None = None
    try:
        yield end
    except BaseException as caught:
        error = caught
        raise
    finally:
        close()
        # Rank 0 without the lock must not write: the directory belongs to another run.
        owns_directory = end.lock is not None or not world.is_main
        if owns_directory and not isinstance(error, KeyboardInterrupt):
            record_exit(run_dir, error, rank=world.rank, step=end.step())
        agreed = error is None or (is_agreed(error) and end.step() is not None)
        if agreed and end.group is not None:
            end.group.leave_together(timeout_seconds)
        if agreed and dist.is_initialized():
            dist.destroy_process_group()
        if end.lock is not None:
            if (run_dir / "run.json").exists():  # missing if the run was refused early
                refresh_page(run_dir)  # before the lock is released
            end.lock.release()
