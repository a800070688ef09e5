"""`wikillm stop RUN`: a request in the run directory, which every rank's own writer passes on to its own process.

So no other machine has to be reached, whatever started the run, and no process is ended by a pattern or a bare pid. What
does not answer is named. On this machine `--now` also ends what stands still, after comparing its start time and boot.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wikillm.core.errors import ConfigError
from wikillm.core.files import write_json
from wikillm.supervise.records import RankRecord, read_records, stop_path

POLL = 0.5
SILENT_AFTER = 6  # record intervals


@dataclass(frozen=True, slots=True)
class Stopped:
    """`over` have ended; `left` still run or cannot be seen."""

    over: tuple[RankRecord, ...]
    left: tuple[RankRecord, ...]


def is_running(record: RankRecord, now: float | None = None) -> bool:
    """The rank's process runs: known for sure on this machine, by the age of its record on another."""
    if record.is_over:
        return False
    if record.process.is_here():
        return record.process.is_alive()
    return record.age(now) < SILENT_AFTER * record.interval


def stop(run: Path, *, at_once: bool, timeout: float, on_wait: Callable[[list[RankRecord]], None]) -> Stopped:
    """Ask, then wait until all ranks have ended, at most `timeout` seconds.

    Raises ConfigError when `run` is no run directory, or nothing runs there.
    """
    records = read_records(run)
    if not run.is_dir() or not records:
        raise ConfigError(
            f"{run} names no processes.",
            got="no RUN/ranks/rank_*.json: it has not come to its first step, or is no run directory",
            fix="wikillm stop RUN, with the run.dir of the run",
        )
    running = [record for record in records if is_running(record)]
    if not running:
        raise ConfigError(f"Nothing runs in {run}.", fix=f"wikillm status {run}")
    write_json(stop_path(run), {"now": at_once, "time": time.time()})
    deadline = time.monotonic() + timeout
    grace = time.monotonic() + 5.0
    while (running := _running(run, running)) and time.monotonic() < deadline:
        on_wait(running)
        if at_once and time.monotonic() > grace:
            for record in running:
                end_here(record)
        time.sleep(POLL)
    ids = {record.rank for record in running}
    return Stopped(tuple(r for r in read_records(run) if r.rank not in ids), tuple(running))


def _running(run: Path, before: list[RankRecord]) -> list[RankRecord]:
    now = {record.rank: record for record in read_records(run)}
    return [record for old in before if is_running(record := now.get(old.rank, old))]


def end_here(record: RankRecord) -> bool:
    """SIGKILL to a rank of this machine, and to no process that merely has its number. True when one was sent."""
    if not record.process.is_here():
        return False
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(record.process.pid)  # from here on the number cannot change hands
        try:
            if record.process.is_alive():
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                return True
        finally:
            os.close(handle)
    return False
