"""Files in the run directory as requests: `touch RUN/stop` and `touch RUN/save`.

A thread of rank 0 looks for them once a second, from the start of the process on, so they also work
while data is prepared and where no signal reaches the run. The ranks agree on a request with the
votes that they hold after each step anyway.
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
    """As SIGTERM to any rank: save, and end with 75."""
    return run / STOP


def save_file(run: Path) -> Path:
    """Save a checkpoint after the next step, and go on."""
    return run / SAVE


def restart_path(run: Path) -> Path:
    """Written by a launcher that waits before it starts the run again."""
    return run / "restart.json"


def announce_restart(run: Path) -> None:
    """Let `wikillm stop` and `status` find a launcher that waits."""
    with suppress(OSError):
        restart_path(run).write_text(json.dumps({"time": time.time()}), encoding="utf-8")


def waits_to_restart(run: Path) -> bool:
    """Whether a launcher waits; a killed one leaves its file behind for an hour at most."""
    with suppress(OSError):
        return time.time() - restart_path(run).stat().st_mtime < 3600
    return False


def leave_stop_mark() -> None:
    """Tell the batch script that would start the run again that it was stopped on request."""
    if mark := os.environ.get("WIKILLM_STOP_MARK"):
        with suppress(OSError):
            Path(mark).touch()


class FileRequests:
    """The requests of one run directory. A file that is older than this process is no request.

    Args:
        on_stop: called once with the reason. (in a thread)
    """

    def __init__(self, run: Path, on_stop: Callable[[str], None]) -> None:
        self._run = run
        self._on_stop = on_stop
        began = _start_of_this_process()
        found = {name: file_identity(run / name) for name in (STOP, SAVE)}
        self._old = {name: i if i and i[1] < began else None for name, i in found.items()}
        self._over = threading.Event()
        self.wants_save = False

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self.wants_save = self.wants_save or self._is_new(SAVE)
            if self._is_new(STOP):
                leave_stop_mark()
                self._on_stop(str(self._run / STOP))
                return

    def _is_new(self, name: str) -> bool:
        found = file_identity(self._run / name)
        return found is not None and found != self._old[name]

    def save_granted(self) -> None:
        """The ranks have agreed to save: remove the file, so that it can be made again."""
        self._old[SAVE] = file_identity(self._run / SAVE)  # where it cannot be removed
        self._remove(SAVE)
        self.wants_save = False

    def remove_old(self) -> None:
        """Remove what earlier starts left behind. (the owner of the run directory)"""
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
    """Look for requests in the block, on rank 0 only."""
    requests = FileRequests(run, on_stop)
    if is_main:
        threading.Thread(target=requests._watch, name="requests", daemon=True).start()
    try:
        yield requests
    finally:
        requests._over.set()


def _start_of_this_process() -> int:
    """In nanoseconds since 1970, as a file's time is given."""
    since_boot = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot / os.sysconf("SC_CLK_TCK")
    return int((time.time() - age) * 1e9)


def file_identity(path: Path) -> tuple[int, int] | None:
    """Changes when the file is made anew or touched; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
