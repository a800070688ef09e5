"""Cores, memory, limits, /dev/shm and clock of this node, from /proc, /sys and getrlimit."""

from __future__ import annotations

import os
import pwd
import re
import resource
import shutil
import socket
from pathlib import Path

from wikillm.doctor.facts import UNLIMITED, Host
from wikillm.doctor.gather.command import ask, number, read

SHARED_MEMORY = Path("/dev/shm")
_NO_LIMIT = 1 << 60  # cgroup v1 writes a number near 2^63 for none


def gather_host(*, ask_tools: bool = True) -> Host:
    """`ask_tools`: also what other programs know, and who has which file open; takes up to a second."""
    memory = _meminfo()
    limit, used = cgroup_memory()
    shm = shutil.disk_usage(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None
    return Host(
        hostname=socket.gethostname(),
        identity=_identity(),
        user=_user(),
        cores=len(os.sched_getaffinity(0)),
        cpu_quota=_cpu_quota(),
        memory=memory.get("MemTotal", 0),
        memory_available=memory.get("MemAvailable", 0),
        swap=memory.get("SwapTotal", 0),
        swap_used=memory.get("SwapTotal", 0) - memory.get("SwapFree", 0),
        cgroup_limit=limit,
        cgroup_used=used,
        load=os.getloadavg()[0],
        open_files=_limit(resource.RLIMIT_NOFILE),
        locked_memory=_limit(resource.RLIMIT_MEMLOCK),
        processes=_limit(resource.RLIMIT_NPROC),
        shm_total=shm.total if shm else None,
        shm_free=shm.free if shm else None,
        shm_leftovers=shm_leftovers(SHARED_MEMORY) if ask_tools else (),
        governor=read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        clock_synchronised=_clock_synchronised() if ask_tools else None,
    )


def _meminfo() -> dict[str, int]:
    found = re.findall(r"^(\w+):\s+(\d+) kB$", read("/proc/meminfo"), re.MULTILINE)
    return {name: int(kib) * 1024 for name, kib in found}


def cgroup_memory(
    root: Path = Path("/sys/fs/cgroup"), own: str | None = None
) -> tuple[int | None, int | None]:
    """(limit, used) of this process's cgroup, v2 or v1; None where there is no limit."""
    own = read("/proc/self/cgroup") if own is None else own
    folders: list[tuple[Path, str, str]] = []
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folders += [
                (root / path.lstrip("/"), "memory.max", "memory.current"),
                (root, "memory.max", "memory.current"),
            ]
        elif "memory" in controllers.split(","):
            v1 = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            folders += [(v1 / path.lstrip("/"), *names), (v1, *names)]
    for folder, limit_name, used_name in folders:
        limit = number(read(folder / limit_name))
        if limit is not None and limit < _NO_LIMIT:
            return limit, number(read(folder / used_name))
    return None, None


def _cpu_quota() -> float | None:
    """Cores that the cgroup grants, None for all."""
    quota, _, period = read("/sys/fs/cgroup/cpu.max").partition(" ")
    if not period:
        quota, period = (
            read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
            read("/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
        )
    granted, of = number(quota), number(period)
    return granted / of if granted and of and granted > 0 else None


def shm_leftovers(folder: Path) -> tuple[tuple[str, int], ...]:
    """Buffers of DeepSpeed and NCCL that no living process has mapped: killed runs left them."""
    names = [
        p for pattern in ("deepspeed_allreduce_buffer_*", "nccl-*") for p in folder.glob(pattern)
    ]
    if not names:
        return ()
    mapped = _mapped_files(str(folder))
    found = []
    for path in names:
        try:
            if str(path) not in mapped:
                found.append((path.name, path.stat().st_size))
        except OSError:
            continue
    return tuple(sorted(found))


def _mapped_files(folder: str) -> set[str]:
    pattern = re.compile(re.escape(folder) + r"/\S+")
    return {
        name for maps in Path("/proc").glob("[0-9]*/maps") for name in pattern.findall(read(maps))
    }


def _identity() -> str:
    """The running kernel and the network it sees: two containers on one host differ, two names of one machine do not."""
    try:
        network = os.readlink("/proc/self/ns/net")
    except OSError:
        network = ""
    return f"{read('/proc/sys/kernel/random/boot_id')} {network}"


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _limit(kind: int) -> int:
    soft = resource.getrlimit(kind)[0]
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


def _clock_synchronised() -> bool | None:
    answer = ask("timedatectl", "show", "-p", "NTPSynchronized", "--value", timeout=3)
    return None if answer.error else {"yes": True, "no": False}.get(answer.text.strip())
