"""Do the nodes agree, and do they reach each other?"""

from __future__ import annotations

from wikillm.core.units import format_size
from wikillm.doctor.checks import Check, Finding, Level, check, fail, ok, skip, warn
from wikillm.doctor.facts import Bandwidth, ClusterFacts, NodeFailure
from wikillm.doctor.needs import Needs
from wikillm.supervise.network import is_loopback

SLOW_BANDWIDTH = 100e6
"""Bytes/s: what a link of 1 Gbit/s gives."""


def _answer(why: tuple[str, NodeFailure | None], needs: Needs) -> Finding:
    node, lost = why
    return fail(lost.text, lost.kind, node=node) if lost else ok("answers")


REACH = Check("reach", "nodes", "The node answers over ssh, without a password.", _answer)
"""Of each node, before its facts are known."""


def _equal(group: str, name: str, about: str, value: str, level: Level = "fail") -> Check:
    """A check that `value`, such as "host.user", is the same on all nodes."""

    def look(cluster: ClusterFacts, needs: Needs) -> Finding:
        found = cluster.by_value(value)
        if len(found) > 1:
            return Finding(level, _parties(found))
        return ok(next(iter(found))) if found else skip("not known on any node")

    return Check(name, group, about, look)


def _parties(found: dict[str, list[str]]) -> str:
    """`2.13.0: node1, node2 and 5 more; 2.12.0: node3`, the largest party first."""
    parts = []
    for value, nodes in sorted(found.items(), key=lambda item: -len(item[1])):
        more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
        parts.append(f"{value}: {', '.join(nodes[:3])}{more}")
    return "; ".join(parts)


PYTHON = _equal("python", "python-equal", "All nodes run the same Python.", "software.python")
CODE = _equal("run", "code-equal", "All nodes have the same code.", "software.code_digest")
FOLDER = _equal(
    "run",
    "folder-equal",
    "The code has the same path on all nodes.",
    "software.code_folder",
    "warn",
)
USER = _equal("nodes", "user-equal", "The same user logs in on all nodes.", "host.user", "warn")
DATA = _equal("run", "data-equal", "All nodes have the same sources.", "disk.sources")
GPUS = _equal("gpu", "gpus-equal", "All nodes have the same kind of GPU.", "gpus.kinds")
MTU = _equal("network", "mtu-equal", "The cards between nodes have one MTU.", "network.mtu")


@check("python")
def versions_equal(cluster: ClusterFacts, needs: Needs) -> Finding:
    """All nodes have the same versions of all packages."""
    known = {name: f.software.packages for name, f in cluster.facts.items() if f.software}
    packages = sorted({package for versions in known.values() for package in versions})
    differ = []
    for package in packages:
        found: dict[str, list[str]] = {}
        for node, versions in known.items():
            found.setdefault(versions.get(package) or "missing", []).append(node)
        if len(found) > 1:
            differ.append(f"{package} {_parties(found)}")
    return fail(" | ".join(differ)) if differ else ok(f"{len(packages)} packages")


@check("gpu")
def slots_equal(cluster: ClusterFacts, needs: Needs) -> Finding:
    """The hostfile gives every node the same number of processes."""
    counts = sorted(set(cluster.slots.values()))
    if len(counts) == 1:
        return ok(f"slots={counts[0]}")
    found = ", ".join(f"{name} slots={count}" for name, count in cluster.slots.items())
    return fail(found, least=counts[0])


@check("nodes")
def distinct_machines(cluster: ClusterFacts, needs: Needs) -> Finding:
    """No two names in the hostfile are one machine."""
    same = cluster.by_value("host.identity")
    twice = [nodes for nodes in same.values() if len(nodes) > 1]
    if twice:
        return fail(f"{' and '.join(twice[0])} are one machine")
    return ok(f"{len(cluster.facts)} machines")


@check("disk")
def shared_folder(cluster: ClusterFacts, needs: Needs) -> Finding:
    """A file that one node writes beside the run directory can be read by every other node."""
    if not cluster.shared:
        return skip("not tried")
    broken = [f"{name}: {text}" for name, text in cluster.shared.items() if isinstance(text, str)]
    if broken:
        return fail("; ".join(broken), "unwritable")
    for name, missing in cluster.shared.items():
        if missing:
            return fail(f"{name} does not see what {', '.join(missing)} wrote", "local")
    return ok(f"{len(cluster.shared)} nodes see each other's files")


@check("network")
def master_equal(cluster: ClusterFacts, needs: Needs) -> Finding:
    """The master's name resolves to the same address on all nodes."""
    found = cluster.by_value("network.master_address")
    others = {address: nodes for address, nodes in found.items() if not is_loopback(address)}
    if len(others) > 1:
        return fail(_parties(others), master=cluster.master)
    return ok(next(iter(others))) if others else skip("known on no node")


@check("network")
def connections(cluster: ClusterFacts, needs: Needs) -> Finding:
    """Every node reaches every other one, on the master's port and on a high one."""
    if not cluster.connections:
        return skip("not tried")
    broken = [f"{a} -> {b}: {error}" for (a, b), error in cluster.connections.items() if error]
    if not broken:
        return ok(f"{len(cluster.connections)} directions")
    more = f" and {len(broken) - 4} more" if len(broken) > 4 else ""
    return fail("; ".join(broken[:4]) + more)


@check("network")
def all_reduce(cluster: ClusterFacts, needs: Needs) -> Finding:
    """An all-reduce between the nodes (gloo over TCP, one process per node), and its bandwidth."""
    measured = cluster.all_reduce
    if not isinstance(measured, Bandwidth):
        return skip(measured) if measured.startswith("not ") else fail(measured, "failed")
    found = f"{format_size(measured.bytes_per_second)}/s over {measured.ranks} nodes"
    if needs.traffic:
        found += f"; {format_size(needs.traffic)} per GPU and step with {needs.recipe}"
    return warn(found, "slow") if measured.bytes_per_second < SLOW_BANDWIDTH else ok(found)
