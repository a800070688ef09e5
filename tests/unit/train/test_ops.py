"""A lock file that a killed build left behind is removed; one whose owner lives is waited for."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from wikillm.core.lock import is_open_here
from wikillm.train.ops import _wait_out_foreign_lock

HOLD = (
    "import os, sys, time; fd = os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print('held', flush=True); time.sleep({})"
)


def hold(lock: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that owns the lock as torch's FileBaton does: it created the file and has it open."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(seconds), str(lock)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_killed_builds_lock_is_removed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    process = hold(lock, 60)
    assert is_open_here(lock)
    process.kill()
    process.wait()
    assert lock.exists() and not is_open_here(lock)
    _wait_out_foreign_lock(tmp_path)
    assert not lock.exists()


def test_a_living_builds_lock_is_waited_for(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    process = hold(lock, 4)  # longer than the patience for an abandoned one
    start = time.monotonic()
    try:
        _wait_out_foreign_lock(tmp_path)
        assert time.monotonic() - start > 3.5, "it was removed under its owner"
    finally:
        process.kill()
        process.wait()
