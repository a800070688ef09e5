"""Checks cores, memory, /dev/shm and limits of the node, from /proc, /sys and getrlimit."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

import psutil

from wikillm.core.files import read_small
from wikillm.core.memory import cgroup_memory
from wikillm.core.units import format_size
from wikillm.doctor.checks import Finding, check, fail, ok, skip, warn
from wikillm.doctor.gpus import count_gpus
from wikillm.doctor.needs import Needs
from wikillm.doctor.network import infiniband_states

SHARED_MEMORY = Path("/dev/shm")
CPU_GROUPS = Path("/sys/fs/cgroup")
MIN_OPEN_FILES = 256
WANTED_OPEN_FILES = 4096
SHM_PER_CPU_RANK = 16 * 2**20
"""Batches that the loader's workers hand over, rounded up."""
SHM_PER_GPU_RANK = 64 * 2**20
"""NCCL's buffers between processes; a container's default of 64 MiB is too small for two."""
MEMORY_PER_RANK = 2 * 2**30
"""torch, transformers, DeepSpeed and a CUDA context in a process, rounded up."""


@check("host")
def cores(needs: Needs) -> Finding:
    """Every process has a core, and no other work keeps the cores busy."""
    here = len(os.sched_getaffinity(0))
    usable = min(here, _cpu_quota())
    load = os.getloadavg()[0]
    found = f"{usable:g} cores, load {load:.1f}, {needs.slots} processes"
    if usable < needs.slots:
        why = "processes wait for each other at every step"
        return warn(found, why, "more cores (a container: --cpus; Slurm: --cpus-per-task)")
    if load > here:
        return warn(found, "other work slows the run down", "find it with `top`, and end it")
    return ok(found)


def _cpu_quota() -> float:
    """Number of cores that the control group allows; infinite without a limit."""
    quota, _, period = read_small(CPU_GROUPS / "cpu.max").partition(" ")
    if not period:
        quota = read_small(CPU_GROUPS / "cpu/cpu.cfs_quota_us")
        period = read_small(CPU_GROUPS / "cpu/cpu.cfs_period_us")
    is_limited = quota.isdecimal() and period.isdecimal()  # not "max" or -1
    return int(quota) / int(period) if is_limited else float("inf")


@check("host")
def memory(needs: Needs) -> Finding:
    """Offloaded states and the processes fit in the memory of the node or its container."""
    here = psutil.virtual_memory()
    limit, used = cgroup_memory()
    size = min(here.total, limit or here.total)
    free = min(here.available, size - (used or 0))
    need = needs.host_memory + needs.slots * MEMORY_PER_RANK
    found = f"{format_size(size)}, {format_size(free)} of it free; about {format_size(need)} needed"
    if needs.host_memory > size + psutil.swap_memory().total:
        why = f"{needs.recipe} keeps {format_size(needs.host_memory)} on the host"
        return fail(found, why, "a recipe without offload, or more nodes")
    if need > free:
        fix = "end other programs, or use fewer processes"
        return warn(found, "the kernel may end the run", fix)
    return ok(found)


@check("host")
def open_files(needs: Needs) -> Finding:
    """A process may open enough files and sockets."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    found = _limit_text(limit)
    if 0 <= limit < MIN_OPEN_FILES:
        return fail(found, "shards, workers and sockets need more", "ulimit -n 65536")
    if 0 <= limit < WANTED_OPEN_FILES:
        return warn(found, "NCCL opens a socket for each channel and peer", "ulimit -n 65536")
    return ok(found)


@check("host")
def locked_memory(needs: Needs) -> Finding:
    """Processes may lock memory if there is InfiniBand, which needs it."""
    if not infiniband_states():
        return skip("no InfiniBand")
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit == resource.RLIM_INFINITY:
        return ok(_limit_text(limit))
    why = "RDMA cannot register its buffers: NCCL fails"
    return fail(_limit_text(limit), why, "ulimit -l unlimited")


@check("host")
def shared_memory(needs: Needs) -> Finding:
    """/dev/shm has room for the buffers of all processes."""
    if not SHARED_MEMORY.is_dir():
        why = "processes exchange data through it"
        return warn("there is no /dev/shm", why, "mount -t tmpfs tmpfs /dev/shm")
    free = shutil.disk_usage(SHARED_MEMORY).free
    per_rank = SHM_PER_GPU_RANK if count_gpus() else SHM_PER_CPU_RANK
    uses_it = needs.slots > 1 or not count_gpus()
    need = needs.slots * per_rank if uses_it else 0
    found = f"{format_size(free)} free, {format_size(need)} needed"
    if free < need:
        fix = "a container: --shm-size=1g; else: mount -o remount,size=1g /dev/shm"
        return fail(found, "processes die with SIGBUS, or NCCL refuses", fix)
    return ok(found)


def _limit_text(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else f"limit {value}"
