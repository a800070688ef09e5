"""Did the kernel's out-of-memory killer end a process? Its counter and the memory limit say so.

`oom_kill` in /proc/vmstat counts the kills of the whole machine, those in control groups included.
It is read every second, so a rise at the death of a rank is that rank's. Kernels without the
counter (gVisor) leave the question open.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from wikillm.core.units import format_size
from wikillm.supervise.records import KILLED, OFTEN_OOM

_VMSTAT = Path("/proc/vmstat")
_GROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # version 1 writes its largest page count for no limit


class OomWatch:
    """Watches for the end of process `pid`; `look` is called while it runs."""

    def __init__(self, pid: int) -> None:
        self._limit = memory_limit(pid)
        self._kills = _kills()

    def look(self) -> None:
        self._kills = _kills()

    def explain(self, how: str) -> str:
        """`how` a process ended (records.end_of), with what the kernel's counter says."""
        now = _kills()
        if OFTEN_OOM not in how or now is None or self._kills is None:
            return how
        if now > self._kills:
            limit = "" if self._limit is None else f", whose limit here is {self._limit}"
            return how.replace(OFTEN_OOM, f"by the kernel's out-of-memory killer{limit}")
        # A process that is gone without a status may have ended in another way.
        never = "not by the kernel's out-of-memory killer"
        return how.replace(OFTEN_OOM, never) if KILLED in how else how


def _kills() -> int | None:
    with suppress(OSError, ValueError, StopIteration):
        lines = _VMSTAT.read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("oom_kill ")).split()[1])
    return None


def memory_limit(pid: int) -> str | None:
    """The smallest memory limit of the process's control groups, as text; None without one.

    Inside a container the group's path is that of the host, and its limit is at the root.
    """
    found = []
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            top = _GROUPS / controllers
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            places = [top / path.strip("/"), *(top / path.strip("/")).parents]
            for place in places[: places.index(top) + 1]:
                with suppress(OSError, ValueError):
                    found.append(int((place / name).read_text()))
    limited = [limit for limit in found if limit < _UNLIMITED]
    return format_size(min(limited)) if limited else None
