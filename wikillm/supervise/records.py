"""Writes and reads RUN/ranks/rank_N.json: the process of rank N, its machine, progress and end.

The record of a rank is written at its start, every `interval` seconds and at its end, by its agent
or, without an agent, by the rank. A process is identified by host, pid, start time and boot, so
that a reused pid is not taken for a rank. RUN/stop.json is the request of `wikillm stop --now`,
which the recorder of each rank reads.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

from wikillm.core.files import read_object, read_regular
from wikillm.supervise.heartbeat import RankProgress
from wikillm.supervise.membership import End
from wikillm.supervise.requests import leave_stop_mark

INTERVAL = 5.0  # seconds between two writes of a record
LOOK_EVERY = 1.0  # seconds between two checks for RUN/stop.json
# indices of the fields 4, 22 and 52 of /proc/PID/stat behind the name, without the state
_STAT_PARENT = 1
_STAT_START = 19
_STAT_EXIT = 49
# include/uapi/linux/pidfd.h
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 8
_PIDFD_INFO_SIZE = 64
OFTEN_OOM = "often the kernel's out-of-memory killer"
"""`OomWatch.explain` replaces this text if the kernel's counter shows the cause."""
KILLED = "was killed by signal"
_LIKELY_CAUSES: dict[int, str] = {
    signal.SIGKILL: f"; {OFTEN_OOM}",
    signal.SIGBUS: "; often a full /dev/shm",
    signal.SIGSEGV: "; a crash inside a library",
}
UNKNOWN_END = f"is gone: its process ended without a message; {OFTEN_OOM}"
"""The text to report if `end_of` returns None."""


@dataclass(frozen=True, slots=True)
class Process:
    """Identifies a process of any machine. `started`: its start in clock ticks since `boot`."""

    host: str
    pid: int
    started: int
    boot: str

    @classmethod
    def here(cls, pid: int) -> Process:
        """The running process `pid` of this machine. Raises OSError if there is none."""
        return cls(socket.gethostname(), pid, _start_ticks(pid), _boot())

    def is_here(self) -> bool:
        """Whether the process is of this machine and boot. Containers on one machine have the same
        boot id, but not the same host name."""
        return self.boot == _boot() and self.host == socket.gethostname()

    def is_alive(self) -> bool:
        """Whether the process is on this machine, runs, and is not a zombie."""
        with suppress(OSError, ValueError, IndexError):
            is_same = self.is_here() and _start_ticks(self.pid) == self.started
            return is_same and _state(self.pid) not in "ZX"
        return False

    def send(self, number: int) -> bool:
        """Send a signal to this process, not to another one with its pid. Returns whether it was
        sent."""
        with suppress(OSError, OverflowError):
            handle = os.pidfd_open(self.pid)  # from here on the pid cannot be reused
            try:
                if self.is_alive():
                    signal.pidfd_send_signal(handle, number)
                    return True
            finally:
                os.close(handle)
        return False

    def exists(self) -> bool:
        """Whether the process runs or is a zombie. Only for a process of this machine."""
        with suppress(OSError, ValueError, IndexError):
            return _start_ticks(self.pid) == self.started
        return False

    def is_suspended(self) -> bool:
        """Whether SIGSTOP or a debugger stopped it. Only for a process of this machine."""
        with suppress(OSError, IndexError):
            return _state(self.pid) in "tT"
        return False


def parent_of(pid: int) -> int:
    """The parent's pid. Raises OSError if there is no process `pid`."""
    return int(_stat(pid)[_STAT_PARENT])


def handle_of(pid: int) -> int | None:
    """A pidfd for `end_of`; it stays valid after the process has ended. None on kernels without
    pidfds (gVisor)."""
    with suppress(OSError):
        return os.pidfd_open(pid)
    return None


def end_of(pid: int, handle: int | None = None) -> str | None:
    """How a process of this user ended, such as "was killed by signal 9"; None if unknown.

    The kernel keeps the exit status until the parent has collected the process. With a `handle` the
    status can also be read later (Linux 6.15).
    """
    status = _status_by_pidfd(handle) if handle is not None else None
    if status is None:
        status = _status(pid)
    if status is None:
        return None
    if number := status & 0x7F:
        return f"{KILLED} {number}{_LIKELY_CAUSES.get(number, '')}"
    return f"ended with code {status >> 8}, without a message"


def _status_by_pidfd(handle: int) -> int | None:
    """The wait(2) status of a process that its parent has collected; None if unknown.

    struct pidfd_info begins with the mask, and its first version ends with exit_code.
    """
    info = bytearray(_PIDFD_INFO_SIZE)
    struct.pack_into("<Q", info, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(handle, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    is_there = struct.unpack_from("<Q", info, 0)[0] & _PIDFD_INFO_EXIT
    return struct.unpack_from("<i", info, _PIDFD_INFO_SIZE - 4)[0] if is_there else None


def _status(pid: int) -> int | None:
    """The wait(2) status, or None while the process runs. A zombie has its exit code; a fatal
    signal is visible earlier."""
    try:
        state, *found = _stat(pid)
        status = int(found[_STAT_EXIT - 1])
    except (OSError, IndexError, ValueError):
        return None
    is_killed = status & 0x7F and state not in "tT"  # tT: the signal suspended it
    return status if state in "ZX" or is_killed else None


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _start_ticks(pid: int) -> int:
    return int(_stat(pid)[_STAT_START])


def _state(pid: int) -> str:
    return _stat(pid)[0]


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True, slots=True)
class RankRecord:
    """The content of rank_N.json.

    Attributes:
        interface: network interface towards the first node; None without one.
        standing: seconds without progress.
        interval: seconds between two records.
        time: Unix time on the rank's machine.
        exit: exit code and reason; None until the rank has reported its exit.
    """

    rank: int
    local_rank: int
    world_size: int
    process: Process
    interface: str | None
    phase: str
    step: int
    standing: float
    interval: float
    time: float
    exit: dict[str, Any] | None = None

    def now(self, progress: RankProgress, end: End | None) -> RankRecord:
        """The record at this moment. `end`: how the rank ended, None while it runs."""
        state: dict[str, Any] = {
            "phase": progress.phase,
            "step": progress.step,
            "standing": progress.standing,
        }
        exited = None if end is None else {"code": int(end.code), "reason": end.reason}
        return replace(self, **state, time=time.time(), exit=exited)

    def age(self, now: float | None = None) -> float:
        return max(0.0, (time.time() if now is None else now) - self.time)


def record_path(run: Path, rank: int) -> Path:
    return run / "ranks" / f"rank_{rank}.json"


def stop_path(run: Path) -> Path:
    return run / "stop.json"


def write_record(run: Path, record: RankRecord) -> None:
    """Write atomically, without fsync, since a record is soon replaced. Raises OSError."""
    path = record_path(run, record.rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(json.dumps(asdict(record)) + "\n", encoding="utf-8")
    os.replace(staged, path)


def read_records(run: Path) -> list[RankRecord]:
    """The records by rank, without unreadable files and ranks of an earlier, larger run."""
    found = []
    for path in (run / "ranks").glob("rank_*.json"):
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            values = json.loads(read_regular(path))
            values["process"] = _from_json(Process, values["process"])
            record = _from_json(RankRecord, values)
            if path == record_path(run, record.rank):
                found.append(record)
    if not found:
        return []
    newest = max(found, key=lambda record: record.time)
    return sorted((r for r in found if r.rank < newest.world_size), key=lambda record: record.rank)


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "str | None": (str, NoneType),
}
_Fields = TypeVar("_Fields", Process, RankRecord)


def _from_json(kind: type[_Fields], values: dict[str, Any]) -> _Fields:
    """Make a dataclass of JSON values, and check them: a file in a shared folder may hold anything.

    Raises TypeError or ValueError for a wrong type, a missing or unknown key or a huge number.
    """
    if not isinstance(values, dict):
        raise TypeError(f"{kind.__name__} is {values!r}")
    for field in fields(kind):
        value = values.get(field.name)
        allowed = _TYPES.get(str(field.type))
        if allowed is not None and type(value) not in allowed:
            raise TypeError(f"{field.name} is {value!r}")
        if isinstance(value, int | float) and not abs(value) < 1 << 62:
            raise ValueError(f"{field.name} is {value!r}")
    end = values.get("exit")
    if end is not None and (type(end["code"]) is not int or type(end["reason"]) is not str):
        raise TypeError("exit is not a code and a reason")
    return kind(**values)


class Recorder(threading.Thread):
    """Writes a rank's record and looks for RUN/stop.json, in a thread that never blocks training.

    Args:
        describe: returns the current record.
        end_at_once: called once at the request of `wikillm stop --now`.
    """

    def __init__(
        self, run: Path, describe: Callable[[], RankRecord], end_at_once: Callable[[], None]
    ) -> None:
        super().__init__(name="recorder", daemon=True)
        self.run_dir = run
        self._describe = describe
        self._end_at_once = end_at_once
        self._closed = threading.Event()
        self._is_ending = False
        self._lock = threading.Lock()

    def run(self) -> None:
        written = 0.0
        while not self._closed.is_set():
            record = self._describe()
            if time.monotonic() - written >= record.interval:
                written = time.monotonic()
                self.write(record)
            if not self._is_ending and read_object(stop_path(self.run_dir)).get("now") is True:
                self._is_ending = True
                leave_stop_mark()
                self._end_at_once()
            self._closed.wait(LOOK_EVERY)

    def write(self, record: RankRecord) -> None:
        with self._lock, suppress(OSError):
            if not self._closed.is_set() or record.exit is not None:
                write_record(self.run_dir, record)

    def close(self, last: RankRecord) -> None:
        """Write the last record."""
        self._closed.set()
        self.write(last)
