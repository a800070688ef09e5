"""Cores, memory, limits, shared memory and clock of a node."""

from __future__ import annotations

from wikillm.core.units import format_size
from wikillm.doctor.facts import UNLIMITED, NodeFacts
from wikillm.doctor.needs import Needs
from wikillm.doctor.verdict import Verdict, check, fail, ok, skip, warn

LEAST_OPEN_FILES, WANTED_OPEN_FILES = 256, 4096
LEAST_PROCESSES_PER_RANK = 128
SHM_PER_CPU_RANK = 70 * 10**6
"""DeepSpeed's buffer on CPU: 69,206,024 bytes measured with 0.19.8 (as in train/cpu_ops.py)."""
SHM_PER_GPU_RANK = 64 * 2**20
"""NCCL's buffers between the processes of a node; a container's default of 64 MiB is too small for two."""
MEMORY_PER_RANK = 2 * 2**30
"""torch, transformers, DeepSpeed and a CUDA context in a process, rounded up."""


@check("host", "host")
def cores(facts: NodeFacts, needs: Needs) -> Verdict:
    """Every process has a core."""
    host = facts.host
    usable = host.cores if host.cpu_quota is None else min(float(host.cores), host.cpu_quota)
    found = f"{usable:g} cores, {needs.slots} processes"
    if usable < needs.slots:
        return warn(
            found,
            "processes wait for each other at every step",
            "more cores (a container: --cpus; Slurm: --cpus-per-task)",
        )
    return ok(found)


@check("host", "host")
def load(facts: NodeFacts, needs: Needs) -> Verdict:
    """The machine is not busy with something else."""
    host = facts.host
    found = f"load {host.load:.1f} on {host.cores} cores"
    return (
        ok(found)
        if host.load <= host.cores
        else warn(found, "other work slows the run down", "top")
    )


@check("host", "host")
def governor(facts: NodeFacts, needs: Needs) -> Verdict:
    """The processor runs at full speed."""
    found = facts.host.governor
    if found is None:
        return skip("not told by this machine")
    if found == "powersave":
        return warn(
            found,
            "data loading and offload run slower",
            "sudo cpupower frequency-set -g performance",
        )
    return ok(found)


@check("host", "host")
def memory(facts: NodeFacts, needs: Needs) -> Verdict:
    """Offloaded states and the processes fit in the node's memory."""
    host = facts.host
    have = min(host.memory, host.cgroup_limit or host.memory)
    need = needs.host_memory + needs.slots * MEMORY_PER_RANK
    found = f"{format_size(have)}, {format_size(host.memory_available)} of it free; about {format_size(need)} needed"
    if needs.host_memory > have + host.swap:
        return fail(
            found,
            f"{needs.recipe} keeps {format_size(needs.host_memory)} on the host",
            "a recipe without offload, or more nodes",
        )
    if need > min(have, host.memory_available):
        return warn(
            found,
            "the kernel may end the run when memory runs out",
            "end other programs, or use fewer processes",
        )
    return ok(found)


@check("host", "host")
def container_memory(facts: NodeFacts, needs: Needs) -> Verdict:
    """The container's memory limit leaves room."""
    host = facts.host
    if host.cgroup_limit is None or host.cgroup_limit >= host.memory:
        return skip("no limit below the machine's memory")
    used = host.cgroup_used or 0
    found = f"{format_size(used)} of {format_size(host.cgroup_limit)} used"
    if used > 0.8 * host.cgroup_limit:
        return warn(
            found, "near the limit the kernel ends processes without a message", "a larger --memory"
        )
    return ok(found)


@check("host", "host")
def swapping(facts: NodeFacts, needs: Needs) -> Verdict:
    """The machine does not swap."""
    host = facts.host
    found = f"{format_size(host.swap_used)} of {format_size(host.swap)} swap in use"
    if host.swap_used > host.memory // 20:
        return warn(
            found,
            "a step that touches swapped memory takes seconds",
            "end other programs; swapoff -a && swapon -a",
        )
    return ok(found)


@check("host", "host")
def open_files(facts: NodeFacts, needs: Needs) -> Verdict:
    """A process may open enough files and sockets."""
    found = _limit(facts.host.open_files)
    if 0 <= facts.host.open_files < LEAST_OPEN_FILES:
        return fail(found, "shards, workers and sockets need more", "ulimit -n 65536")
    if 0 <= facts.host.open_files < WANTED_OPEN_FILES:
        return warn(
            found,
            "NCCL opens a socket per channel and peer, the loader a file per shard",
            "ulimit -n 65536",
        )
    return ok(found)


@check("host", "host")
def locked_memory(facts: NodeFacts, needs: Needs) -> Verdict:
    """Memory may be locked where InfiniBand needs it."""
    if not (facts.network and facts.network.infiniband):
        return skip("no InfiniBand")
    found = _limit(facts.host.locked_memory)
    if facts.host.locked_memory != UNLIMITED:
        return fail(
            found,
            "RDMA cannot register its buffers: NCCL ends with an error",
            "ulimit -l unlimited",
        )
    return ok(found)


@check("host", "host")
def process_limit(facts: NodeFacts, needs: Needs) -> Verdict:
    """Enough processes and threads may be started."""
    found, least = _limit(facts.host.processes), LEAST_PROCESSES_PER_RANK * needs.slots
    if 0 <= facts.host.processes < least:
        return fail(
            found, f"{needs.slots} processes start about {least} threads", "ulimit -u 65536"
        )
    return ok(found)


@check("host", "host")
def shared_memory(facts: NodeFacts, needs: Needs) -> Verdict:
    """/dev/shm holds the buffers of all processes of the node."""
    host, on_gpu = facts.host, bool(facts.gpus and facts.gpus.cards)
    if host.shm_free is None:
        return warn(
            "there is no /dev/shm",
            "processes of a node exchange data through it",
            "mount -t tmpfs tmpfs /dev/shm",
        )
    uses_it = needs.slots > 1 or (bool(needs.recipe) and not on_gpu)
    need = needs.slots * (SHM_PER_GPU_RANK if on_gpu else SHM_PER_CPU_RANK) if uses_it else 0
    found = f"{format_size(host.shm_free)} free, {format_size(need)} needed"
    if host.shm_free < need:
        return fail(
            found,
            "processes die with SIGBUS, or NCCL refuses",
            "a container: --shm-size=1g; else: mount -o remount,size=1g /dev/shm",
        )
    return ok(found)


@check("host", "host")
def shared_memory_leftovers(facts: NodeFacts, needs: Needs) -> Verdict:
    """No killed run left its buffers in /dev/shm."""
    left = facts.host.shm_leftovers
    if left:
        size = format_size(sum(size for _, size in left))
        return warn(
            f"{len(left)} buffers, {size}, such as {left[0][0]}",
            "they keep memory until the next boot",
            f"rm /dev/shm/{left[0][0]}",
        )
    return ok("none")


@check("host", "host")
def clock_synchronised(facts: NodeFacts, needs: Needs) -> Verdict:
    """The clock follows a time server."""
    found = facts.host.clock_synchronised
    if found is None:
        return skip("timedatectl does not say")
    if not found and needs.nodes > 1:
        return warn(
            "not synchronised",
            "logs of the nodes cannot be put in order",
            "sudo timedatectl set-ntp true",
        )
    return ok("synchronised") if found else ok("not synchronised; one node does not need it")


def _limit(value: int) -> str:
    return "unlimited" if value == UNLIMITED else f"limit {value}"
