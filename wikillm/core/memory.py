"""Memory limits and usage of this process's control groups, from /sys/fs/cgroup."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

from wikillm.core.files import read_small

GROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60  # cgroup version 1 writes a number near 2^63 for "no limit"


def cgroup_memory(
    root: Path = GROUPS, membership: str | None = None
) -> tuple[int | None, int | None]:
    """(limit, used) in bytes of the control group with the smallest limit; (None, None) if no group
    has a limit.

    Args:
        membership: content of /proc/PID/cgroup, of cgroup version 1 or 2. Default: this process's.
    """
    found: list[tuple[int, int | None]] = []
    for line in (
        read_small(Path("/proc/self/cgroup")) if membership is None else membership
    ).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top = root
            names = ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            top = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        # Inside a container the host's path does not exist, and the root is the process's group.
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            limit = _number(folder / names[0])
            if limit is not None and limit < _NO_LIMIT:
                found.append((limit, _number(folder / names[1])))
            if folder == top:
                break
    return min(found, key=lambda each: each[0], default=(None, None))


def available_memory() -> int:
    """Bytes of memory that are available on this node, within the control group's limit."""
    free: int = psutil.virtual_memory().available
    limit, used = cgroup_memory()
    return free if limit is None else max(0, min(free, limit - (used or 0)))


def _number(path: Path) -> int | None:
    with suppress(ValueError):
        return int(read_small(path))
    return None
