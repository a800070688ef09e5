"""`wikillm stop RUN`: requests a stop in the run directory, and waits until the ranks have ended.

The request is RUN/stop, which rank 0 reads, or with `--now` RUN/stop.json, which the recorder of
each rank reads. So the command connects to no other machine, and ends no process by a pattern or a
bare pid. It names ranks that do not respond. With `--now` it also kills stalled ranks on this
machine, once the kernel has confirmed that the process is a rank of this run: anyone may have
written the record.
"""

from __future__ import annotations

import os
import shlex
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
from wikillm.supervise.requests import stop_file, waits_to_restart

POLL = 0.5
GRACE = 5.0  # seconds from the request until --now kills ranks that do not respond
SILENT_AFTER = 6  # a remote rank without a new record for this many intervals counts as ended


@dataclass(frozen=True, slots=True)
class Stopped:
    """The ranks after a stop.

    Attributes:
        ended: ranks whose process has ended.
        remaining: ranks that still run, or whose process cannot be observed from this machine.
        spared: rank -> why `--now` did not kill its process.
    """

    ended: tuple[RankRecord, ...]
    remaining: tuple[RankRecord, ...]
    spared: dict[int, str] = field(default_factory=dict)


def is_running(record: RankRecord, now: float | None = None) -> bool:
    """Whether the rank's process runs. On another machine this is judged by the record's age."""
    if record.exit is not None:
        return False
    if record.process.is_here():
        return record.process.is_alive()
    return record.age(now) < SILENT_AFTER * record.interval


def stop(
    run: Path, *, at_once: bool, timeout: float, on_wait: Callable[[list[RankRecord]], None]
) -> Stopped:
    """Write the request, then wait at most `timeout` seconds until all ranks have ended.

    Raises ConfigError if `run` is not a run directory, or nothing runs there.
    """
    records = read_records(run)
    running = [record for record in records if is_running(record)]
    # A launcher that waits to restart the run has no ranks; it looks for RUN/stop.
    if not running and waits_to_restart(run):
        stop_file(run).touch()
        return Stopped(tuple(records), ())
    if not run.is_dir() or not records:
        raise ConfigError(
            f"{run} has no record of a process.",
            got="no RUN/ranks/rank_*.json: it has not started yet, or is not a run directory",
            fix=f"wikillm stop RUN, with the run.dir of the run\n{_fix_while_starting(run)}",
        )
    if not running:
        raise ConfigError(
            f"Nothing runs in {run}.",
            fix=f"wikillm status {shlex.quote(str(run))}\n{_fix_while_starting(run)}",
        )
    if at_once:
        write_json(stop_path(run), {"now": True, "time": time.time()})
    else:
        stop_file(run).touch()
    # Wait for the ranks. With `--now`, kill those that do not respond in time.
    deadline = time.monotonic() + timeout
    kill_after = time.monotonic() + GRACE
    spared: dict[int, str] = {}
    while (running := _running(run, running)) and time.monotonic() < deadline:
        on_wait(running)
        if at_once and time.monotonic() > kill_after:
            spared = {r.rank: why for r in running if (why := end_here(run, r)) is not None}
            if len(spared) == len(running):
                break  # this command can end none of the ranks
        time.sleep(POLL)
    remaining = {record.rank for record in running}
    ended = tuple(record for record in read_records(run) if record.rank not in remaining)
    return Stopped(
        ended, tuple(running), {rank: why for rank, why in spared.items() if rank in remaining}
    )


def _fix_while_starting(run: Path) -> str:
    path = shlex.quote(str(run))
    return f"to stop a start that still prepares its data: mkdir -p {path} && touch {path}/stop"


def _running(run: Path, before: list[RankRecord]) -> list[RankRecord]:
    now = {record.rank: record for record in read_records(run)}
    return [record for old in before if is_running(record := now.get(old.rank, old))]


def end_here(run: Path, record: RankRecord) -> str | None:
    """Send SIGKILL to a rank of this run on this machine. Returns why it was spared, or None."""
    process = record.process
    if not process.is_here():
        return f"it is on {process.host}"
    handle = None
    with suppress(OSError, OverflowError):
        handle = os.pidfd_open(process.pid)  # from here on the pid cannot be reused
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
    """Why the running process that a record names is not that rank of this run; None if it is.

    The record itself proves nothing: anyone who can write into the folder can name any process. So
    ask the kernel whether the process belongs to the caller (or, for root, to the author of the
    record), runs Python, has the shared memory of a rank, and has this rank's log file open for
    writing.
    """
    proc = Path(f"/proc/{record.process.pid}")
    try:
        log = (run / "logs" / f"rank_{record.rank}.log").stat()
        owners = {os.geteuid()}
        if os.geteuid() == 0:
            owners.add(record_path(run, record.rank).stat().st_uid)
        uids = _uids(proc)
        if not set(uids) <= owners:
            return f"it belongs to another user (uid {uids[0]})"
        words = (proc / "cmdline").read_bytes().replace(b"\0", b" ")
        command = words.decode("utf-8", "replace").strip()
        if not Path(os.readlink(proc / "exe")).name.startswith(("python", "pypy")):
            return f"it is not Python: {command}"
        if not _has_open(proc, log):
            return f"it does not have this run's log file open: {command}"
    except (OSError, ValueError, IndexError) as error:
        return f"it cannot be inspected: {error}"
    return None


def _uids(proc: Path) -> list[int]:
    """The real, effective, saved and file system user of a process."""
    lines = (proc / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    return [int(uid) for line in lines if line.startswith("Uid:") for uid in line.split()[1:]]


def _has_open(proc: Path, log: os.stat_result) -> bool:
    """Whether a process has a rank's shared memory open and, for writing, the file `log`."""
    has_memory = False
    has_log = False
    for entry in list((proc / "fd").iterdir()):
        with suppress(FileNotFoundError):
            about = entry.stat()
            has_memory = has_memory or os.readlink(entry).startswith(f"/memfd:{MEMORY_NAME}")
            if os.path.samestat(about, log):
                flags = (proc / "fdinfo" / entry.name).read_text().split("flags:", 1)[1].split()[0]
                has_log = has_log or int(flags, 8) & os.O_ACCMODE != os.O_RDONLY
    return has_memory and has_log
