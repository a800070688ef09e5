"""`wikillm stop RUN`: a request in the run directory, which every rank's own writer passes on to its own process.

So no other machine has to be reached, whatever started the run, and no process is ended by a pattern or a bare pid. What
does not answer is named. On this machine `--now` also ends what stands still, after it has asked the kernel whether the
process is a rank of this run: what a record says of it may have been written by anybody.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from wikillm.core.errors import ConfigError
from wikillm.core.files import write_json
from wikillm.supervise.heartbeat import MEMORY_NAME
from wikillm.supervise.records import RankRecord, read_records, record_path, stop_path

POLL = 0.5
GRACE = 5.0  # seconds from the request until --now ends what has not heard it
SILENT_AFTER = 6  # record intervals


@dataclass(frozen=True, slots=True)
class Stopped:
    """`over` have ended; `left` still run or cannot be seen; `untouched`: by rank, why a process was not ended."""

    over: tuple[RankRecord, ...]
    left: tuple[RankRecord, ...]
    untouched: dict[int, str] = field(default_factory=dict)


def is_running(record: RankRecord, now: float | None = None) -> bool:
    """The rank's process runs: known for sure on this machine, by the age of its record on another."""
    if record.is_over:
        return False
    if record.process.is_here():
        return record.process.is_alive()
    return record.age(now) < SILENT_AFTER * record.interval


def stop(
    run: Path, *, at_once: bool, timeout: float, on_wait: Callable[[list[RankRecord]], None]
) -> Stopped:
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
    grace = time.monotonic() + GRACE
    untouched: dict[int, str] = {}
    while (running := _running(run, running)) and time.monotonic() < deadline:
        on_wait(running)
        if at_once and time.monotonic() > grace:
            untouched = {r.rank: why for r in running if (why := end_here(run, r)) is not None}
            if len(untouched) == len(running):
                break  # nothing that is waited for can end by this command
        time.sleep(POLL)
    ids = {record.rank for record in running}
    over = tuple(record for record in read_records(run) if record.rank not in ids)
    return Stopped(
        over, tuple(running), {rank: why for rank, why in untouched.items() if rank in ids}
    )


def _running(run: Path, before: list[RankRecord]) -> list[RankRecord]:
    now = {record.rank: record for record in read_records(run)}
    return [record for old in before if is_running(record := now.get(old.rank, old))]


def end_here(run: Path, record: RankRecord) -> str | None:
    """SIGKILL to a rank of this run on this machine; None, or why the process that the record names was left alone."""
    process = record.process
    if not process.is_here():
        return f"it is on {process.host}"
    handle = None
    with suppress(OSError, OverflowError):
        handle = os.pidfd_open(process.pid)  # from here on the number cannot change hands
    if handle is None:
        return None if not process.is_alive() else "it cannot be opened"
    try:
        if not process.is_alive():
            return None
        why = not_of_this_run(run, record)
        if why is None:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        return None
    except OSError as error:
        return f"it cannot be ended: {error.strerror}"
    finally:
        os.close(handle)
    return why


def not_of_this_run(run: Path, record: RankRecord) -> str | None:
    """Why the running process that a record names is not that rank of this run; None when it is.

    The record itself proves nothing: whoever can write into the folder can put any process's number and start time there. Asked
    is the kernel: the process belongs to who wrote the record, or to who asks; it is a Python; it holds the shared memory that every
    rank has; and it has this run's log file of this rank open for writing.
    """
    place = Path(f"/proc/{record.process.pid}")
    try:
        log = (run / "logs" / f"rank_{record.rank}.log").stat()
        owners = (
            {os.geteuid(), record_path(run, record.rank).stat().st_uid}
            if os.geteuid() == 0
            else {os.geteuid()}
        )
        if not set(_uids(place)) <= owners:
            return f"it belongs to another user (uid {_uids(place)[0]})"
        command = (
            (place / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        )
        if not Path(os.readlink(place / "exe")).name.startswith(("python", "pypy")):
            return f"it is no Python: {command}"
        if not _holds(place, log):
            return f"it has not this run's log file open: {command}"
    except (OSError, ValueError, IndexError) as error:
        return f"it cannot be looked at: {error}"
    return None


def _uids(place: Path) -> list[int]:
    """Real, effective, saved and file system user of a process."""
    lines = (place / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    return [int(uid) for line in lines if line.startswith("Uid:") for uid in line.split()[1:]]


def _holds(place: Path, log: os.stat_result) -> bool:
    """Whether among a process's open files are a board and, open for writing, the file `log`."""
    board = written = False
    for entry in list((place / "fd").iterdir()):
        with suppress(FileNotFoundError):
            about = entry.stat()
            board = board or os.readlink(entry).startswith(f"/memfd:{MEMORY_NAME}")
            if (about.st_dev, about.st_ino) == (log.st_dev, log.st_ino):
                flags = (place / "fdinfo" / entry.name).read_text().split("flags:", 1)[1].split()[0]
                written = written or int(flags, 8) & os.O_ACCMODE != os.O_RDONLY
    return board and written
