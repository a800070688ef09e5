"""One holder across processes; a killed holder leaves no lock behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wikillm.core.lock import FileLock, lock_or_wait

HOLD = """
import sys, time
from pathlib import Path
from wikillm.core.lock import FileLock
lock = FileLock(Path(sys.argv[1]))
assert lock.try_acquire(), "the lock was not free"
print("held", flush=True)
time.sleep(60)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_one_holder_and_its_name(tmp_path: Path) -> None:
    process = holder(tmp_path / "deep" / "lock")
    lock = FileLock(tmp_path / "deep" / "lock")
    try:
        assert not lock.try_acquire()
        assert f"pid {process.pid} on " in lock.holder()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert lock.try_acquire(), "a killed holder must leave no lock"
    assert lock.try_acquire(), "taking it twice is fine"
    assert f"pid {os.getpid()} " in lock.holder()
    lock.release()
    with FileLock(tmp_path / "deep" / "lock"):
        pass


def test_the_holder_is_reported_while_waiting(tmp_path: Path) -> None:
    process = holder(tmp_path / "lock")
    calls: list[tuple[str, float]] = []

    def on_wait(who: str, seconds: float) -> None:
        calls.append((who, seconds))
        if len(calls) == 3:
            process.kill()
            process.wait()

    with lock_or_wait(tmp_path / "lock", on_wait, poll=0.02):
        assert not FileLock(tmp_path / "lock").try_acquire()
    assert len(calls) >= 3 and all(f"pid {process.pid}" in who for who, _ in calls[:3])
    assert [seconds for _, seconds in calls] == sorted(seconds for _, seconds in calls)
    assert FileLock(tmp_path / "lock").try_acquire()


def test_a_damaged_lock_file_names_another_process(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("not json")
    assert FileLock(tmp_path / "lock").holder() == "another process"


FORKING = """
import os, sys, time
from pathlib import Path
from wikillm.core.lock import FileLock
lock = FileLock(Path(sys.argv[1]))
assert lock.try_acquire()
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
if sys.stdin.readline() == "release\\n":
    lock.release()
    print("released", flush=True)
    time.sleep(60)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("end", ["release", "die"])
def test_a_forked_child_does_not_own_the_lock(end: str, tmp_path: Path) -> None:
    """The parent keeps the lock over the fork; it ends with the parent, while the child lives."""
    path = tmp_path / "lock"
    parent = subprocess.Popen(
        [sys.executable, "-c", FORKING, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdin is not None and parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        for _ in range(200):  # until the child has closed its copy
            if not any(
                os.path.realpath(fd) == str(path) for fd in Path(f"/proc/{child}/fd").glob("*")
            ):
                break
            time.sleep(0.02)
        assert not FileLock(path).try_acquire(), "the child's copy took the parent's lock away"
        parent.stdin.write(f"{end}\n")
        parent.stdin.flush()
        if end == "release":
            assert parent.stdout.readline() == "released\n"
        else:
            parent.wait(timeout=30)
        os.kill(child, 0)  # it lives
        assert FileLock(path).try_acquire()
    finally:
        for pid in (child, parent.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        parent.wait()
        parent.stdin.close()
        parent.stdout.close()
