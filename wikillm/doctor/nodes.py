"""Do the nodes agree, and do they reach each other?"""

from __future__ import annotations

from wikillm.core.units import format_size
from wikillm.doctor.checks import Check, Level, Verdict, check, fail, ok, skip, warn
from wikillm.doctor.facts import Bandwidth, ClusterFacts, NodeFailure
from wikillm.doctor.needs import Needs
from wikillm.doctor.network import FASTER, MASTER_FIX, SLOWER
from wikillm.doctor.software import INSTALL
from wikillm.supervise.network import is_loopback

SLOW_BANDWIDTH = 100e6
"""Bytes/s that a link of 1 Gbit/s reaches."""


SAME_FOLDER = "--workdir FOLDER, the same on all nodes"
_UNREACHED = {
    "timeout": ("the node does not answer", "is it on, is its name right? ssh {node}"),
    "key": ("no login without a password", "ssh-copy-id {node}"),
    "changed-key": (
        "its host key is not the known one",
        "if it was reinstalled: ssh-keygen -R {node}, then ssh {node} once",
    ),
    "folder": ("the checkout is not at the same path", SAME_FOLDER),
    "python": ("WikiLLM does not start there", f"on {{node}}: {INSTALL}"),
    "other": ("no facts about this node", "ssh {node}"),
}
"""`NodeFailure.kind` -> what follows from it, and the fix."""


def _answer(answer: tuple[str, NodeFailure | None], needs: Needs) -> Verdict:
    node, lost = answer
    if lost is None:
        return ok("answers")
    why, fix = _UNREACHED[lost.kind]
    return fail(lost.text, why, fix.format(node=node))


REACH = Check("reach", "nodes", "The node answers over ssh, without a password.", _answer)
"""The check of each node before its facts are known."""


def _equal(
    group: str, name: str, about: str, value: str, why: str, fix: str, level: Level = "fail"
) -> Check:
    """A check that `value`, such as "host.user", is the same on all nodes."""

    def look(cluster: ClusterFacts, needs: Needs) -> Verdict:
        found = cluster.by_value(value)
        if len(found) > 1:
            return Verdict(level, _groups(found), why, fix)
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
_MAKE = "make env on all nodes"
PYTHON = _equal(
    "python", "python-equal", "All nodes run the same Python.", "software.python",
    "pickled objects and compiled ops differ", "make env on all nodes with the same PYTHON",
)  # fmt: skip
CODE = _equal(
    "run", "code-equal", "All nodes have the same code.", "software.code_digest",
    _MIXED, "share one checkout, or check out one commit on all nodes",
)  # fmt: skip
FOLDER = _equal(
    "run", "folder-equal", "The code has the same path on all nodes.", "software.code_folder",
    "relative paths mean different folders", SAME_FOLDER, "warn",
)  # fmt: skip
USER = _equal(
    "nodes", "user-equal", "The same user logs in on all nodes.", "host.user",
    "one user cannot write the other's files", "set User NAME in ~/.ssh/config", "warn",
)  # fmt: skip
DATA = _equal(
    "run", "data-equal", "All nodes have the same sources.", "disk.sources",
    "each node would build another store", "put one copy on a shared folder",
)  # fmt: skip
GPUS = _equal(
    "gpu", "gpus-equal", "All nodes have the same kind of GPU.", "gpus.kinds",
    "NCCL and gloo do not mix; every step waits for the slowest",
    "leave the other nodes out of the hostfile",
)  # fmt: skip
MTU = _equal(
    "network", "mtu-equal", "The cards between nodes have one MTU.", "network.mtu",
    "the first large collective hangs", "ip link set CARD mtu N, the same everywhere",
)  # fmt: skip


@check("python")
def versions_equal(cluster: ClusterFacts, needs: Needs) -> Verdict:
    """All nodes have the same versions of all packages."""
    known = {name: f.software.packages for name, f in cluster.facts.items() if f.software}
    packages = sorted({package for versions in known.values() for package in versions})
    differ = []
    for package in packages:
        found: dict[str, list[str]] = {}
        for node, versions in known.items():
            found.setdefault(versions.get(package) or "missing", []).append(node)
        if len(found) > 1:
            differ.append(f"{package} {_groups(found)}")
    return fail(" | ".join(differ), _MIXED, _MAKE) if differ else ok(f"{len(packages)} packages")


@check("gpu")
def slots_equal(cluster: ClusterFacts, needs: Needs) -> Verdict:
    """The hostfile gives every node the same number of processes."""
    counts = sorted(set(cluster.slots.values()))
    if len(counts) == 1:
        return ok(f"slots={counts[0]}")
    found = ", ".join(f"{name} slots={count}" for name, count in cluster.slots.items())
    why = "all nodes need the same number of processes"
    return fail(found, why, f"slots={counts[0]} everywhere")


@check("nodes")
def distinct_machines(cluster: ClusterFacts, needs: Needs) -> Verdict:
    """No two names in the hostfile are one machine."""
    same = cluster.by_value("host.identity")
    twice = [nodes for nodes in same.values() if len(nodes) > 1]
    if twice:
        found = f"{' and '.join(twice[0])} are one machine"
        fix = "keep one line per machine in the hostfile"
        return fail(found, "its GPUs would get two processes each", fix)
    return ok(f"{len(cluster.facts)} machines")


@check("disk")
def shared_folder(cluster: ClusterFacts, needs: Needs) -> Verdict:
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
def master_equal(cluster: ClusterFacts, needs: Needs) -> Verdict:
    """The master's name resolves to the same address on all nodes."""
    found = cluster.by_value("network.master_address")
    outer = {address: nodes for address, nodes in found.items() if not is_loopback(address)}
    if len(outer) > 1:
        why = f"some nodes take {cluster.master} for another machine"
        return fail(_groups(outer), why, MASTER_FIX)
    return ok(next(iter(outer))) if outer else skip("known on no node")


@check("network")
def connections(cluster: ClusterFacts, needs: Needs) -> Verdict:
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
def all_reduce(cluster: ClusterFacts, needs: Needs) -> Verdict:
    """An all-reduce between the nodes (gloo over TCP, one process per node), and its bandwidth."""
    measured = cluster.all_reduce
    if not isinstance(measured, Bandwidth):
        if measured.startswith("not "):
            return skip(measured)
        return fail(measured, "the run's first collective would fail too", "see the checks above")
    found = f"{format_size(measured.bytes_per_second)}/s over {measured.ranks} nodes"
    if needs.traffic:
        found += f"; {format_size(needs.traffic)} per GPU and step with {needs.recipe}"
    is_slow = measured.bytes_per_second < SLOW_BANDWIDTH
    return warn(found, SLOWER, FASTER) if is_slow else ok(found)
