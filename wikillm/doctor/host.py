"""Has the node enough cores, memory, /dev/shm and limits? From /proc, /sys and getrlimit."""

from __future__ import annotations

import os
import resource
import shutil
import socket
from pathlib import Path

import psutil

from wikillm.core.memory import cgroup_memory
from wikillm.core.units import format_size
from wikillm.doctor.checks import Verdict, check, fail, ok, skip, warn
from wikillm.doctor.facts import UNLIMITED, HostFacts, NodeFacts
from wikillm.doctor.needs import Needs
from wikillm.doctor.probe import read

SHARED_MEMORY = Path("/dev/shm")
LEAST_OPEN_FILES = 256
WANTED_OPEN_FILES = 4096
SHM_PER_CPU_RANK = 70 * 10**6
"""DeepSpeed's buffer on CPU: 69,206,024 bytes measured with 0.19.8."""
SHM_PER_GPU_RANK = 64 * 2**20
"""NCCL's buffers between processes; a container's default of 64 MiB is too small for two."""
MEMORY_PER_RANK = 2 * 2**30
"""torch, transformers, DeepSpeed and a CUDA context in a process, rounded up."""


def gather_host() -> HostFacts:
    memory = psutil.virtual_memory()
    limit, used = cgroup_memory()
    has_shm = SHARED_MEMORY.is_dir()
    return HostFacts(
        hostname=socket.gethostname(),
        identity=_identity(),
        user=psutil.Process().username(),
        cores=len(os.sched_getaffinity(0)),
        cpu_quota=_cpu_quota(),
        load=os.getloadavg()[0],
        memory=memory.total,
        memory_available=memory.available,
        swap=psutil.swap_memory().total,
        cgroup_limit=limit,
        cgroup_used=used,
        open_files=_limit(resource.RLIMIT_NOFILE),
        locked_memory=_limit(resource.RLIMIT_MEMLOCK),
        shm_free=shutil.disk_usage(SHARED_MEMORY).free if has_shm else None,
    )


def _cpu_quota() -> float | None:
    """Number of cores that the cgroup grants; None if it has no limit."""
    quota, _, period = read("/sys/fs/cgroup/cpu.max").partition(" ")
    if not period:
        quota = read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        period = read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    is_limited = quota.isdecimal() and period.isdecimal()  # not "max" or -1
    return int(quota) / int(period) if is_limited else None


def _identity() -> str:
    """Boot id and network namespace: equal only for two names of one machine or container."""
    try:
        network = os.readlink("/proc/self/ns/net")
    except OSError:
        network = ""
    return f"{read('/proc/sys/kernel/random/boot_id')} {network}"


def _limit(kind: int) -> int:
    soft = resource.getrlimit(kind)[0]
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


@check("host", "host")
def cores(facts: NodeFacts, needs: Needs) -> Verdict:
    """Every process has a core, and nothing else keeps the cores busy."""
    host = facts.host
    usable = float(host.cores if host.cpu_quota is None else min(host.cores, host.cpu_quota))
    found = f"{usable:g} cores, load {host.load:.1f}, {needs.slots} processes"
    if usable < needs.slots:
        why = "processes wait for each other at every step"
        return warn(found, why, "more cores (a container: --cpus; Slurm: --cpus-per-task)")
    if host.load > host.cores:
        return warn(found, "other work slows the run down", "find it with `top`, and end it")
    return ok(found)


@check("host", "host")
def memory(facts: NodeFacts, needs: Needs) -> Verdict:
    """Offloaded states and the processes fit in the memory of the node or its container."""
    host = facts.host
    limit = host.cgroup_limit or host.memory
    size = min(host.memory, limit)
    free = min(host.memory_available, limit - (host.cgroup_used or 0))
    need = needs.host_memory + needs.slots * MEMORY_PER_RANK
    found = f"{format_size(size)}, {format_size(free)} of it free; about {format_size(need)} needed"
    if needs.host_memory > size + host.swap:
        why = f"{needs.recipe} keeps {format_size(needs.host_memory)} on the host"
        return fail(found, why, "a recipe without offload, or more nodes")
    if need > free:
        fix = "end other programs, or use fewer processes"
        return warn(found, "the kernel may end the run", fix)
    return ok(found)


@check("host", "host")
def open_files(facts: NodeFacts, needs: Needs) -> Verdict:
    """A process may open enough files and sockets."""
    limit = facts.host.open_files
    found = _limit_text(limit)
    if 0 <= limit < LEAST_OPEN_FILES:
        return fail(found, "shards, workers and sockets need more", "ulimit -n 65536")
    if 0 <= limit < WANTED_OPEN_FILES:
        return warn(found, "NCCL opens a socket for each channel and peer", "ulimit -n 65536")
    return ok(found)


@check("host", "host")
def locked_memory(facts: NodeFacts, needs: Needs) -> Verdict:
    """Memory may be locked where InfiniBand needs it."""
    if not (facts.network and facts.network.infiniband):
        return skip("no InfiniBand")
    found = _limit_text(facts.host.locked_memory)
    if facts.host.locked_memory == UNLIMITED:
        return ok(found)
    return fail(found, "RDMA cannot register its buffers: NCCL fails", "ulimit -l unlimited")


@check("host", "host")
def shared_memory(facts: NodeFacts, needs: Needs) -> Verdict:
    """/dev/shm has room for the buffers of all processes."""
    host = facts.host
    if host.shm_free is None:
        why = "processes exchange data through it"
        return warn("there is no /dev/shm", why, "mount -t tmpfs tmpfs /dev/shm")
    per_rank = SHM_PER_GPU_RANK if facts.gpu_count else SHM_PER_CPU_RANK
    uses_it = needs.slots > 1 or (bool(needs.recipe) and not facts.gpu_count)
    need = needs.slots * per_rank if uses_it else 0
    found = f"{format_size(host.shm_free)} free, {format_size(need)} needed"
    if host.shm_free < need:
        fix = "a container: --shm-size=1g; else: mount -o remount,size=1g /dev/shm"
        return fail(found, "processes die with SIGBUS, or NCCL refuses", fix)
    return ok(found)


def _limit_text(value: int) -> str:
    return "unlimited" if value == UNLIMITED else f"limit {value}"
