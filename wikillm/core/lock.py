"""One holder at a time, across processes and, where the file system supports flock, across nodes.

The lock is an `flock` on a file, so it goes away with its holder, however that one ends: a killed process
leaves no stale lock behind. A forked child (a DataLoader's worker) has no share in it: it would keep the lock for
as long as it outlives its parent. The file names the holder for whoever waits. NFS before v4 and some parallel file
systems ignore flock between nodes; what the lock guards must therefore also be staged and renamed.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType


class FileLock:
    """An exclusive flock. `with FileLock(path):` waits for it; `try_acquire` does not.

    Args:
        is_shared: any number of shared holders exclude an exclusive one, and are not named.
    """

    def __init__(self, path: Path, *, is_shared: bool = False) -> None:
        self.path, self._is_shared = path, is_shared
        self._fd: int | None = None

    def try_acquire(self) -> bool:
        """Take the lock if nobody has it; True when this process holds it now."""
        if self._fd is not None:
            return True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if self._is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return False
        if not self._is_shared:
            with suppress(
                OSError
            ):  # on a full disk the lock still holds; only its owner's name is missing
                os.ftruncate(fd, 0)
                os.pwrite(
                    fd, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0
                )
        self._fd = fd
        _held.add(self)
        return True

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)  # closing drops the flock: nobody else has this open file
            self._fd = None
            _held.discard(self)

    def holder(self) -> str:
        """Who has the lock, for a message: `pid 4242 on node-3`."""
        try:
            found = json.loads(self.path.read_text())
            return f"pid {found['pid']} on {found['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def __enter__(self) -> FileLock:
        while not self.try_acquire():
            time.sleep(0.1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _drop_shares() -> None:
    """In a new child: close the locks' files. Without LOCK_UN, so that the parent's hold on them stays."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_drop_shares)


@contextmanager
def lock_or_wait(
    path: Path, on_wait: Callable[[str, float], None], poll: float = 0.5
) -> Iterator[None]:
    """Hold the lock at `path`; while another process has it, call `on_wait(holder, seconds_waited)` every `poll` s.

    At first more often: the ranks of a run that open the same store hold it for some hundredths of a second each.
    """
    lock, start, pause = FileLock(path), time.monotonic(), poll / 16
    while not lock.try_acquire():
        on_wait(lock.holder(), time.monotonic() - start)
        time.sleep(pause)
        pause = min(2 * pause, poll)
    try:
        yield
    finally:
        lock.release()


def is_open_here(path: Path) -> bool:
    """Does a process on this machine (that we may look into) have `path` open? Tells whether a lock file has an owner."""
    target = str(path.resolve())
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(descriptor) == target:
                return True
    return False


def is_in_use(path: Path) -> bool:
    """Does a process on this machine have `path` open, or mapped into its memory?"""
    if is_open_here(path):
        return True
    target = f" {path.resolve()}\n"
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            if target in maps.read_text(errors="replace"):
                return True
    return False
