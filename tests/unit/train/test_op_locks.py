"""Lock files of killed builds are removed, at any op; those of a running build stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wikillm.core.lock import is_open_here
from wikillm.train.op_locks import remove_stale_locks

HOLD = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_CREAT | os.O_EXCL)
print("held", flush=True)
time.sleep(60)
"""


def hold(lock: Path) -> subprocess.Popen[str]:
    """A process that owns the lock as torch's FileBaton does: it has the file open."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_only_the_locks_of_killed_builds_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    killed, running, fresh = (tmp_path / op / "lock" for op in ("pin_memory", "async_io", "adam"))
    for lock in (killed, running, fresh):
        lock.parent.mkdir()
    builds = [hold(killed), hold(running)]
    try:
        builds[0].kill()
        builds[0].wait()
        assert killed.exists() and not is_open_here(killed) and is_open_here(running)
        fresh.touch()  # its build has not opened it yet
        for path in (killed, killed.parent, running):
            os.utime(path, (0, 0))
        remove_stale_locks()
        assert not killed.exists() and running.exists() and fresh.exists()
    finally:
        for build in builds:
            build.kill()
            build.wait()
