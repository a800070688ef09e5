"""Checks whether the nodes are equal, and whether they reach each other.

Each node sends its `values_to_compare`. The machine on which the command runs compares them.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from wikillm.core.files import read_small
from wikillm.core.units import format_size
from wikillm.doctor.checks import Check, Finding, Level, check, fail, ok, skip, warn
from wikillm.doctor.disk import digest_of_sources
from wikillm.doctor.gpus import gpu_kinds
from wikillm.doctor.needs import Needs
from wikillm.doctor.network import FASTER, MASTER_FIX, SLOWER, outer_card, route_of
from wikillm.doctor.probe import in_time
from wikillm.doctor.software import digest_of_code, supported_ranges
from wikillm.supervise.node_versions import installed_version

SLOW_BANDWIDTH = 100e6
"""Bytes/s that a link of 1 Gbit/s reaches."""
SECONDS = 12.0
_VERSION = "version of "


def values_to_compare(needs: Needs) -> dict[str, str]:
    """The known values of this node that must be equal on all nodes, or different."""
    jobs = {
        "software": _software,
        "sources": lambda: {"sources": digest_of_sources(needs)},
        "network": lambda: _network(needs),
    }
    found = in_time(jobs, SECONDS)
    return {name: value for values in found.values() for name, value in values.items()}


def _software() -> dict[str, str]:
    versions = {name: installed_version(name) or "missing" for name in supported_ranges()}
    versions["Python"] = platform.python_version()
    # Two names with equal boot and network namespace are one machine or container.
    boot = read_small(Path("/proc/sys/kernel/random/boot_id"))
    return {f"{_VERSION}{name}": version for name, version in versions.items()} | {
        "code": digest_of_code(),
        "user": psutil.Process().username(),
        "gpus": gpu_kinds(),
        "machine": f"{boot} {os.readlink('/proc/self/ns/net')}",
    }


def _network(needs: Needs) -> dict[str, str]:
    card = outer_card(needs)
    route = route_of(needs)
    found = {"mtu": str(psutil.net_if_stats()[card].mtu)} if card else {}
    if route is not None:
        # The node's own address is the source of its packets to the master.
        found |= {"master": route.master, "address": route.address}
    return found


@dataclass(slots=True)
class Cluster:
    """What the nodes of a run answered.

    Attributes:
        slots: processes of each node, in the order of the hostfile.
        values: `values_to_compare` of each node that answered.
        shared: for each node, the nodes whose files it did not see, or why it could not write.
        connections: the error of each connection (from, to), "" if it works.
        all_reduce: bytes per second, or why it was not measured.
    """

    slots: Mapping[str, int]
    values: Mapping[str, dict[str, str]]
    shared: dict[str, list[str] | str] = field(default_factory=dict)
    connections: dict[tuple[str, str], str] = field(default_factory=dict)
    all_reduce: float | str = "not measured"

    def by_value(self, name: str) -> dict[str, list[str]]:
        """The nodes by their value of `name`, without nodes whose value is unknown."""
        found: dict[str, list[str]] = {}
        for node in self.slots:
            if value := self.values.get(node, {}).get(name):
                found.setdefault(value, []).append(node)
        return found

    def addresses(self) -> dict[str, str]:
        """The address of each node by which the others reach it.

        For the first node it is the address to which most nodes resolve the master's name.
        """
        found = {node: own["address"] for node, own in self.values.items() if "address" in own}
        master = next((node for node in self.slots if node in self.values), None)
        resolved = self.by_value("master")
        if master is not None and resolved:
            found[master] = max(resolved, key=lambda address: len(resolved[address]))
        return found


REACH = Check(
    "reach",
    "nodes",
    "The node answers over ssh, without a password.",
    lambda failure: failure or ok("answers"),
)
"""The check of a node's answer. Its subject is the finding on a missing answer, or None."""


def _equal(
    group: str, name: str, about: str, key: str, why: str, fix: str, level: Level = "fail"
) -> Check:
    """A check that `key` has the same value on all nodes."""

    def look(cluster: Cluster) -> Finding:
        found = cluster.by_value(key)
        if len(found) > 1:
            return Finding(level, _groups(found), why, fix)
        return ok(next(iter(found))) if found else skip("not known on any node")

    return Check(name, group, about, look)


def _groups(found: dict[str, list[str]]) -> str:
    """`2.13.0: node1, node2 and 5 more; 2.12.0: node3`, the largest group first."""
    parts = []
    for value, nodes in sorted(found.items(), key=lambda item: -len(item[1])):
        more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
        parts.append(f"{value}: {', '.join(nodes[:3])}{more}")
    return "; ".join(parts)


_MIXED = "ranks would run different programs"
CODE = _equal(
    "run", "code-equal", "All nodes have the same code.", "code",
    _MIXED, "share one checkout, or check out one commit on all nodes",
)  # fmt: skip
USER = _equal(
    "nodes", "user-equal", "The same user logs in on all nodes.", "user",
    "one user cannot write the other's files", "set User NAME in ~/.ssh/config", "warn",
)  # fmt: skip
DATA = _equal(
    "run", "data-equal", "All nodes have the same sources.", "sources",
    "each node would build another store", "put one copy on a shared folder",
)  # fmt: skip
GPUS = _equal(
    "gpu", "gpus-equal", "All nodes have the same kind of GPU.", "gpus",
    "NCCL and gloo do not mix; every step waits for the slowest",
    "leave the other nodes out of the hostfile",
)  # fmt: skip
MTU = _equal(
    "network", "mtu-equal", "The cards between nodes have one MTU.", "mtu",
    "the first large collective hangs", "ip link set CARD mtu N, the same everywhere",
)  # fmt: skip
MASTER = _equal(
    "network", "master-equal", "The master's name resolves to the same address on all nodes.",
    "master", "some nodes would connect to another machine", MASTER_FIX,
)  # fmt: skip


@check("python")
def versions_equal(cluster: Cluster) -> Finding:
    """All nodes have the same versions of Python and of all packages."""
    names = {name for own in cluster.values.values() for name in own}
    compared = sorted(name for name in names if name.startswith(_VERSION))
    versions = {name.removeprefix(_VERSION): cluster.by_value(name) for name in compared}
    differ = [f"{name} {_groups(found)}" for name, found in versions.items() if len(found) > 1]
    if differ:
        return fail(" | ".join(differ), _MIXED, "make env on all nodes with the same PYTHON")
    return ok(f"Python and {len(versions) - 1} packages")


@check("gpu")
def slots_equal(cluster: Cluster) -> Finding:
    """The hostfile gives every node the same number of processes."""
    counts = sorted(set(cluster.slots.values()))
    if len(counts) == 1:
        return ok(f"slots={counts[0]}")
    found = ", ".join(f"{name} slots={count}" for name, count in cluster.slots.items())
    why = "all nodes need the same number of processes"
    return fail(found, why, f"slots={counts[0]} everywhere")


@check("nodes")
def distinct_machines(cluster: Cluster) -> Finding:
    """No two names in the hostfile are one machine."""
    twice = [nodes for nodes in cluster.by_value("machine").values() if len(nodes) > 1]
    if twice:
        found = f"{' and '.join(twice[0])} are one machine"
        fix = "keep one line per machine in the hostfile"
        return fail(found, "each of its GPUs would get two processes", fix)
    return ok(f"{len(cluster.values)} machines")


@check("disk")
def shared_folder(cluster: Cluster) -> Finding:
    """A file that one node writes beside the run directory can be read by every other node."""
    if not cluster.shared:
        return skip("not tried")
    fix = "run.dir=FOLDER on a shared disk"
    broken = [f"{name}: {text}" for name, text in cluster.shared.items() if isinstance(text, str)]
    if broken:
        return fail("; ".join(broken), "every node writes checkpoints", fix)
    for name, missing in cluster.shared.items():
        if missing:
            found = f"{name} does not see the files of {', '.join(missing)}"
            return fail(found, "checkpoints would be incomplete", fix)
    return ok(f"{len(cluster.shared)} nodes see each other's files")


@check("network")
def connections(cluster: Cluster) -> Finding:
    """Every node reaches every other node, on the master's port and on a high port."""
    if not cluster.connections:
        return skip("not tried")
    broken = [f"{a} -> {b}: {error}" for (a, b), error in cluster.connections.items() if error]
    if not broken:
        return ok(f"{len(cluster.connections)} directions")
    more = f" and {len(broken) - 4} more" if len(broken) > 4 else ""
    fix = "open all TCP ports between the nodes (firewall)"
    return fail("; ".join(broken[:4]) + more, "ranks connect both ways", fix)


@check("network")
def all_reduce(cluster: Cluster) -> Finding:
    """An all-reduce between the nodes (gloo over TCP, one process per node), and its bandwidth."""
    measured = cluster.all_reduce
    if isinstance(measured, str):
        if measured.startswith("not "):
            return skip(measured)
        return fail(measured, "the run's first collective would fail too", "see the checks above")
    found = f"{format_size(measured)}/s over {len(cluster.values)} nodes"
    return warn(found, SLOWER, FASTER) if measured < SLOW_BANDWIDTH else ok(found)
