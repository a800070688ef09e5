"""The kernel's out-of-memory killer, in a control group with a real limit."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from wikillm.supervise.oom import OomWatch
from wikillm.supervise.records import end_of


def memory_group(limit: int) -> Path | None:
    """A new control group (v1 or v2) with a memory limit; None if it cannot be created."""
    for top, name in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = top / f"wikillm-test-{os.getpid()}"
        with suppress(OSError):
            group.mkdir()
            if (group / name).exists():
                (group / name).write_text(str(limit))
                return group
            group.rmdir()
    return None


def test_the_out_of_memory_killer_is_told_from_another_kill() -> None:
    group = memory_group(64 << 20)
    if group is None:
        pytest.skip("needs a control group that can be written")
    words = "input(); held = bytearray(256 << 20); input()"
    try:
        for is_oom in (False, True):
            with subprocess.Popen(
                [sys.executable, "-c", words], stdin=subprocess.PIPE, text=True
            ) as process:
                (group / "cgroup.procs").write_text(str(process.pid))
                watch = OomWatch(process.pid)
                watch.update()
                assert process.stdin is not None
                if is_oom:
                    process.stdin.write("\n")
                    process.stdin.flush()
                else:
                    process.kill()
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
                said = watch.explain(end_of(process.pid) or "")
                by = ", whose limit here is 64 MiB" if is_oom else ""
                word = "by" if is_oom else "not by"
                killer = f"{word} the kernel's out-of-memory killer{by}"
                assert said == f"was killed by signal 9; {killer}"
                process.kill()
    finally:
        group.rmdir()
