"""Files in the run directory for other programs: the requests `touch RUN/stop` and
`touch RUN/save`, and RUN/restart.json while a launcher waits to start the run again.

A thread of rank 0 looks for requests once a second from the start of the process on. So they also
work while data is prepared, and for runs that no signal can reach. The ranks agree on a
request in the vote that follows each step.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOOK_SECONDS = 1.0
STOP = "stop"
SAVE = "save"


def stop_file(run: Path) -> Path:
    """The file that requests a checkpoint and an exit with code 75, as SIGTERM to a rank does."""
    return run / STOP


def save_file(run: Path) -> Path:
    """The file that requests a checkpoint after the next step; training continues."""
    return run / SAVE


def restart_path(run: Path) -> Path:
    """The file that exists while a launcher waits to start the run again."""
    return run / "restart.json"


def announce_restart(run: Path) -> None:
    """Write the file, by which `wikillm stop` and `wikillm status` find the waiting launcher."""
    with suppress(OSError):
        restart_path(run).write_text(json.dumps({"time": time.time()}), encoding="utf-8")


def waits_to_restart(run: Path) -> bool:
    """Whether a launcher waits. A file older than an hour is from a launcher that was killed."""
    with suppress(OSError):
        return time.time() - restart_path(run).stat().st_mtime < 3600
    return False


def leave_stop_mark() -> None:
    """Create the file by which a batch script learns that the run was stopped on request."""
    if mark := os.environ.get("WIKILLM_STOP_MARK"):
        with suppress(OSError):
            Path(mark).touch()


class FileRequests:
    """The requests in one run directory. Files older than this process are ignored.

    Args:
        on_stop: called once with the reason. (in a thread)
    """

    def __init__(self, run: Path, on_stop: Callable[[str], None]) -> None:
        self._run = run
        self._on_stop = on_stop
        began = _start_of_this_process()
        self._old: dict[str, tuple[int, int] | None] = {}  # identities of files to ignore
        for name in (STOP, SAVE):
            found = file_identity(run / name)
            self._old[name] = found if found is not None and found[1] < began else None
        self._closed = threading.Event()
        self.wants_save = False

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            self.wants_save = self.wants_save or self._is_new(SAVE)
            if self._is_new(STOP):
                leave_stop_mark()
                self._on_stop(str(self._run / STOP))
                return

    def _is_new(self, name: str) -> bool:
        found = file_identity(self._run / name)
        return found is not None and found != self._old[name]

    def clear_save_request(self) -> None:
        """Remove RUN/save once the ranks have agreed to save, so that a new request is noticed."""
        self._old[SAVE] = file_identity(self._run / SAVE)  # in case it cannot be removed
        self._remove(SAVE)
        self.wants_save = False

    def remove_old(self) -> None:
        """Remove request files of earlier starts. (the owner of the run directory)"""
        for name, old in self._old.items():
            if old is not None and file_identity(self._run / name) == old:
                self._remove(name)

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            (self._run / name).unlink(missing_ok=True)


@contextmanager
def watched_requests(
    run: Path, on_stop: Callable[[str], None], *, is_main: bool
) -> Iterator[FileRequests]:
    """Look for requests during the block, on rank 0 only."""
    requests = FileRequests(run, on_stop)
    if is_main:
        threading.Thread(target=requests._watch, name="requests", daemon=True).start()
    try:
        yield requests
    finally:
        requests._closed.set()


def _start_of_this_process() -> int:
    """When this process started, in nanoseconds since 1970 like st_mtime_ns."""
    since_boot = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot / os.sysconf("SC_CLK_TCK")
    return int((time.time() - age) * 1e9)


def file_identity(path: Path) -> tuple[int, int] | None:
    """Inode and modification time, which change when the file is written again; None without it."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
