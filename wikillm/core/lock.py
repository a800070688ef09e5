"""A lock between processes and, if the file system supports flock across nodes, between nodes.

The lock is an `flock` on a file, so it ends with its holder: a killed process leaves no stale lock.
Forked children (DataLoader workers) do not inherit the lock, because it could then outlive the
parent. The lock's file names the holder. NFS before v4 and some parallel file systems ignore flock
between nodes, so the files that a lock guards must also be staged and renamed.
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

from wikillm.core.files import read_regular


class FileLock:
    """An flock. `with FileLock(path):` waits for the lock; `try_acquire` does not wait.

    Args:
        is_shared: take a shared lock, which several processes can hold at once, but not together
            with an exclusive lock. The file does not name the holders of a shared lock.
    """

    def __init__(self, path: Path, *, is_shared: bool = False) -> None:
        self.path = path
        self._is_shared = is_shared
        self._fd: int | None = None

    def try_acquire(self) -> bool:
        """Take the lock if it is free. Returns whether this process holds it now."""
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
            owner = {"host": socket.gethostname(), "pid": os.getpid()}
            with suppress(OSError):  # on a full disk, the lock is valid but the file is unnamed
                os.ftruncate(fd, 0)
                os.pwrite(fd, json.dumps(owner).encode(), 0)
        self._fd = fd
        _held.add(self)
        return True

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)  # drops the flock: no other process has this open file
            self._fd = None
            _held.discard(self)

    def holder(self) -> str:
        """The process that holds the lock, for a message: `pid 4242 on node-3`."""
        try:
            found = json.loads(read_regular(self.path))
            return f"pid {found['pid']} on {found['host']}"
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            return "another process"

    def __enter__(self) -> FileLock:
        while not self.try_acquire():
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _release_in_child() -> None:
    """Close the lock files in a forked child. Closing without LOCK_UN leaves the parent's locks."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)


@contextmanager
def lock_or_wait(
    path: Path, on_wait: Callable[[str, float], None], poll: float = 0.5
) -> Iterator[None]:
    """Hold the lock at `path`; while waiting, call `on_wait(holder, seconds_waited)`.

    The lock is polled every `poll` seconds. The first pauses are shorter, because ranks that open a
    store hold its lock for only some hundredths of a second.
    """
    lock = FileLock(path)
    start = time.monotonic()
    pause = poll / 16
    while not lock.try_acquire():
        on_wait(lock.holder(), time.monotonic() - start)
        time.sleep(pause)
        pause = min(2 * pause, poll)
    try:
        yield
    finally:
        lock.release()


def is_open_here(path: Path) -> bool:
    """Whether a process on this machine has `path` open. Only processes that this user may inspect
    are seen."""
    target = str(path.resolve())
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(descriptor) == target:
                return True
    return False
