"""Locks of killed builds and buffers of killed runs are removed; those with an owner stay."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wikillm.core.lock import is_open_here
from wikillm.train import cpu_ops
from wikillm.train.cpu_ops import _wait_for_other_builder

HOLD = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_CREAT | os.O_EXCL)
print("held", flush=True)
time.sleep({})
"""
MAP = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 0)
print("mapped", flush=True)
input()
"""


def hold(lock: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that owns the lock as torch's FileBaton does: it has the file open."""
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
    _wait_for_other_builder(tmp_path)
    assert not lock.exists()


def test_a_living_builds_lock_is_waited_for(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    process = hold(lock, 4)  # longer than the patience for an abandoned one
    start = time.monotonic()
    try:
        _wait_for_other_builder(tmp_path)
        assert time.monotonic() - start > 3.5, "it was removed under its owner"
    finally:
        process.kill()
        process.wait()


def test_locks_of_killed_builds_of_any_op_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    killed, living = (tmp_path / name / "lock" for name in ("pin_memory", "async_io"))
    for lock in (killed, living):
        lock.parent.mkdir()
    killed.touch()
    process = hold(living, 60)
    try:
        for path in (killed, killed.parent, living):
            os.utime(path, (0, 0))
        cpu_ops.sweep_op_locks()
        assert not killed.exists() and living.exists()
    finally:
        process.kill()
        process.wait()


def test_buffers_of_a_killed_start_are_removed_and_no_others(tmp_path: Path) -> None:
    prefix = f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_"
    old = time.time() - 60
    dead, mapped, opened, fresh = (tmp_path / f"{prefix}{port}_0" for port in (1, 2, 3, 4))
    other = tmp_path / "deepspeed_allreduce_buffer_999999_127.0.0.1_5_0"
    foreign = tmp_path / "torch_77_1"
    for path in (dead, mapped, opened, fresh, other, foreign):
        path.write_bytes(bytes(4096))
        if path != fresh:
            os.utime(path, (old, old))
    (tmp_path / f"{prefix}6_0").symlink_to(foreign)
    neighbour = subprocess.Popen(
        [sys.executable, "-c", MAP, str(mapped)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert neighbour.stdout is not None and neighbour.stdout.readline() == "mapped\n"
        with open(opened, "rb"):
            cpu_ops.sweep_shared_memory(tmp_path)
    finally:
        neighbour.communicate("\n", timeout=30)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {mapped.name, opened.name, fresh.name, other.name, foreign.name, f"{prefix}6_0"}
    os.utime(mapped, (old, old))
    cpu_ops.sweep_shared_memory(tmp_path)
    assert not mapped.exists(), "its last user has gone"
