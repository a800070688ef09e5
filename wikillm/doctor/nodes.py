"""Do the nodes agree, and do they reach each other?"""

from __future__ import annotations

from collections.abc import Callable

from wikillm.core.units import format_size
from wikillm.doctor.checks import (
    ClusterCheck,
    Finding,
    Level,
    Verdict,
    cluster_check,
    fail,
    ok,
    skip,
    warn,
)
from wikillm.doctor.facts import Bandwidth, ClusterFacts, NodeFacts, Unreachable
from wikillm.doctor.needs import Needs
from wikillm.supervise.network import is_loopback

SLOW_BANDWIDTH = 100e6
"""Bytes/s: what a link of 1 Gbit/s gives."""
REACH = ("nodes", "reach", "The node answers over ssh without a password, in the same folder.")


def judge_reach(node: str, unreachable: Unreachable | None) -> Verdict:
    """The check of each node that precedes all others."""
    finding = ok("answers")
    if unreachable is not None:
        finding = fail(unreachable.text, unreachable.kind, node=node)
    return finding.verdict("reach", "nodes", node)


def _equal(
    group: str, name: str, about: str, value: Callable[[NodeFacts], str | None], level: Level
) -> ClusterCheck:
    """A check that all nodes have the same value; the smaller parties are named."""

    def look(cluster: ClusterFacts, needs: Needs) -> Finding:
        found = cluster.by_value(value)
        if len(found) > 1:
            return Finding(level, _parties(found))
        return ok(next(iter(found))) if found else skip("not known on any node")

    return ClusterCheck(name, group, about, look)


def _parties(found: dict[str, list[str]]) -> str:
    """`2.13.0: node1, node2 and 5 more; 2.12.0: node3`, the largest party first."""
    parts = []
    for value, nodes in sorted(found.items(), key=lambda item: -len(item[1])):
        more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
        parts.append(f"{value}: {', '.join(nodes[:3])}{more}")
    return "; ".join(parts)


def _sources(facts: NodeFacts) -> str | None:
    if not facts.disk or not facts.disk.data:
        return None
    digests = "-".join(sorted(set(facts.disk.data.values())))
    return f"{len(facts.disk.data)} files, {digests[:33]}"


def _gpu_kinds(facts: NodeFacts) -> str | None:
    if not facts.gpus:
        return None
    return ", ".join(sorted({card.name for card in facts.gpus.cards})) or "no GPU"


def _mtu(facts: NodeFacts) -> str | None:
    card = facts.network.outer_card if facts.network else None
    return str(card.mtu) if card else None


PYTHON = _equal(
    "python",
    "python-equal",
    "All nodes run the same Python.",
    lambda facts: facts.software.python if facts.software else None,
    "fail",
)
CODE = _equal(
    "run",
    "code-equal",
    "All nodes have the same WikiLLM code.",
    lambda facts: facts.software.code_digest if facts.software else None,
    "fail",
)
FOLDER = _equal(
    "run",
    "folder-equal",
    "WikiLLM lies at the same path on all nodes.",
    lambda facts: facts.software.code_folder if facts.software else None,
    "warn",
)
USER = _equal(
    "nodes",
    "user-equal",
    "The same user logs in on all nodes.",
    lambda facts: facts.host.user if facts.host else None,
    "warn",
)
DATA = _equal("run", "data-equal", "All nodes have the same sources.", _sources, "fail")
GPUS = _equal("gpu", "gpus-equal", "All nodes have the same kind of GPU.", _gpu_kinds, "fail")
MTU = _equal("network", "mtu-equal", "The cards between nodes have one MTU.", _mtu, "fail")


@cluster_check("python")
def versions_equal(cluster: ClusterFacts, needs: Needs) -> Finding:
    """All nodes have the same versions of all packages."""
    known = [facts.software.packages for facts in cluster.facts.values() if facts.software]
    names = sorted({name for packages in known for name in packages})
    differ = []
    for name in names:

        def version(facts: NodeFacts, name: str = name) -> str | None:
            return (facts.software.packages.get(name) or "missing") if facts.software else None

        found = cluster.by_value(version)
        if len(found) > 1:
            differ.append(f"{name} {_parties(found)}")
    return fail(" | ".join(differ)) if differ else ok(f"{len(names)} packages")


@cluster_check("gpu")
def slots_equal(cluster: ClusterFacts, needs: Needs) -> Finding:
    """The hostfile gives every node the same number of processes."""
    counts = sorted(set(cluster.slots.values()))
    if len(counts) == 1:
        return ok(f"slots={counts[0]}")
    found = ", ".join(f"{name} slots={count}" for name, count in cluster.slots.items())
    return fail(found, least=counts[0])


@cluster_check("nodes")
def distinct_machines(cluster: ClusterFacts, needs: Needs) -> Finding:
    """No two names in the hostfile are one machine."""
    same = cluster.by_value(lambda facts: facts.host.identity if facts.host else None)
    twice = [nodes for nodes in same.values() if len(nodes) > 1]
    if twice:
        return fail(f"{' and '.join(twice[0])} are one machine")
    return ok(f"{len(cluster.facts)} machines")


@cluster_check("disk")
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


@cluster_check("network")
def master_equal(cluster: ClusterFacts, needs: Needs) -> Finding:
    """The master's name resolves to the same address on all nodes."""
    found = cluster.by_value(first_master_address)
    others = {address: nodes for address, nodes in found.items() if not is_loopback(address)}
    if len(others) > 1:
        return fail(_parties(others), master=cluster.master)
    return ok(next(iter(others))) if others else skip("known on no node")


def first_master_address(facts: NodeFacts) -> str | None:
    addresses = facts.network.master_addresses if facts.network else ()
    return addresses[0] if addresses else None


@cluster_check("network")
def connections(cluster: ClusterFacts, needs: Needs) -> Finding:
    """Every node reaches every other one, on the master's port and on a high one."""
    if not cluster.connections:
        return skip("not tried")
    broken = [f"{a} -> {b}: {error}" for (a, b), error in cluster.connections.items() if error]
    if not broken:
        return ok(f"{len(cluster.connections)} directions")
    more = f" and {len(broken) - 4} more" if len(broken) > 4 else ""
    return fail("; ".join(broken[:4]) + more)


@cluster_check("network")
def all_reduce(cluster: ClusterFacts, needs: Needs) -> Finding:
    """An all-reduce between the nodes (gloo over TCP, one process per node), and its bandwidth."""
    measured = cluster.all_reduce
    if not isinstance(measured, Bandwidth):
        return skip(measured) if measured.startswith("not ") else fail(measured, "failed")
    found = f"{format_size(measured.bytes_per_second)}/s over {measured.ranks} nodes"
    if needs.traffic:
        found += f"; {format_size(needs.traffic)} per GPU and step with {needs.recipe}"
    return warn(found, "slow") if measured.bytes_per_second < SLOW_BANDWIDTH else ok(found)
