"""Finds out whether the kernel's out-of-memory killer ended a process.

`oom_kill` in /proc/vmstat counts the kills on the whole machine, including those in control groups.
It is read every second; if it has risen when a rank dies, the rank was the victim. On kernels
without the counter (gVisor) the cause stays unknown.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from wikillm.core.memory import cgroup_memory
from wikillm.core.units import format_size
from wikillm.supervise.records import KILLED, OFTEN_OOM

_VMSTAT = Path("/proc/vmstat")


class OomWatch:
    """Watches process `pid`. Call `update` regularly while the process runs."""

    def __init__(self, pid: int) -> None:
        limit, _ = cgroup_memory(membership=_cgroups_of(pid))
        self._limit = None if limit is None else format_size(limit)
        self._kills = _kills()

    def update(self) -> None:
        self._kills = _kills()

    def explain(self, how: str) -> str:
        """`how`, a text of `end_of`, with OFTEN_OOM replaced by what the counter shows."""
        now = _kills()
        if OFTEN_OOM not in how or now is None or self._kills is None:
            return how
        if now > self._kills:
            limit = "" if self._limit is None else f", whose limit here is {self._limit}"
            return how.replace(OFTEN_OOM, f"by the kernel's out-of-memory killer{limit}")
        # Without KILLED in `how` the signal is unknown, so the killer cannot be ruled out.
        excluded = "not by the kernel's out-of-memory killer"
        return how.replace(OFTEN_OOM, excluded) if KILLED in how else how


def _kills() -> int | None:
    """The kernel's count of out-of-memory kills; None if it has no counter."""
    with suppress(OSError, ValueError, StopIteration):
        lines = _VMSTAT.read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("oom_kill ")).split()[1])
    return None


def _cgroups_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8")
    return ""
