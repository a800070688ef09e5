"""Do the nodes agree, and do they reach each other?"""

from __future__ import annotations

from collections.abc import Callable

from wikillm.core.units import format_seconds, format_size
from wikillm.doctor.checks.network import is_loopback
from wikillm.doctor.cluster import Bandwidth, Cluster, Refusal
from wikillm.doctor.facts import NodeFacts
from wikillm.doctor.needs import Needs
from wikillm.doctor.verdict import ClusterCheck, Verdict, cluster_check, fail, ok, skip, warn

CLOCK_SKEW = 1.0
SLOW_BANDWIDTH = 100e6
"""Bytes/s: what a link of 1 Gbit/s gives."""

_REFUSALS = {
    "timeout": ("the node does not answer", "is it on, and is its name right? ssh {node}"),
    "name": ("the name is not known here", "correct the hostfile, or add {node} to /etc/hosts or ~/.ssh/config"),
    "refused": ("nobody listens for ssh there", "start sshd on {node}"),
    "key": ("no login without a password", "ssh-copy-id {node}"),
    "changed-key": ("its host key is not the known one", "if the machine was set up anew: ssh-keygen -R {node}, then ssh {node} once"),
    "folder": ("the checkout is not at the same path", "--workdir FOLDER, the same on all nodes"),
    "python": ("WikiLLM does not start there", "make env in the checkout of {node}, or pip install wikillm there"),
}  # fmt: skip


def judge_reach(node: str, refusal: Refusal | None) -> Verdict:
    """The node answers over ssh, without a password, with the checkout in the same folder."""
    if refusal is None:
        return ok("answers")
    why, fix = _REFUSALS.get(refusal.kind, ("no facts about this node", "ssh {node}"))
    return fail(refusal.text, why, fix.format(node=node))


def _equal(
    group: str,
    name: str,
    about: str,
    what: Callable[[NodeFacts], str | None],
    why: str,
    fix: str,
    level: str = "fail",
) -> ClusterCheck:
    """A check that all nodes have the same value; the smaller parties are named."""

    def judge(cluster: Cluster, needs: Needs) -> Verdict:
        found = cluster.by_value(what)
        if not found:
            return skip("not known on any node")
        if len(found) == 1:
            return ok(next(iter(found)))
        return (fail if level == "fail" else warn)(_parties(found), why, fix)

    return ClusterCheck(name, group, about, judge)


def _parties(found: dict[str, list[str]]) -> str:
    """`2.13.0: node1, node2 and 5 more; 2.12.0: node3`, the largest party first."""
    parts = []
    for value, nodes in sorted(found.items(), key=lambda item: -len(item[1])):
        more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
        parts.append(f"{value}: {', '.join(nodes[:3])}{more}")
    return "; ".join(parts)


PYTHON = _equal(
    "python", "python-equal", "All nodes run the same Python.",
    lambda f: f.software.python if f.software else None,
    "pickled objects and compiled ops differ", "make env with the same PYTHON on all nodes, or environments of one Python",
)  # fmt: skip
CODE = _equal(
    "run", "code-equal", "All nodes have the same WikiLLM code.",
    lambda f: f.software.code_digest if f.software else None,
    "ranks would run different programs", "one checkout on a shared folder, or the same commit everywhere",
)  # fmt: skip
FOLDER = _equal(
    "run", "folder-equal", "WikiLLM lies at the same path on all nodes.",
    lambda f: f.software.code_folder if f.software else None,
    "paths in the configuration mean different folders", "--workdir FOLDER, the same on all nodes", "warn",
)  # fmt: skip
DATA = _equal(
    "run", "data-equal", "The sources of data.path are the same on all nodes.",
    lambda f: (
        f"{len(f.disk.data)} files, {'-'.join(sorted(set(f.disk.data.values())))[:33]}" if f.disk and f.disk.data else None
    ),
    "each node would build another store", "one copy on a shared folder",
)  # fmt: skip
USER = _equal(
    "nodes", "user-equal", "The same user logs in on all nodes.",
    lambda f: f.host.user if f.host else None,
    "files of one are not writable for the other", "User NAME in ~/.ssh/config", "warn",
)  # fmt: skip
DRIVER = _equal(
    "gpu", "driver-equal", "All nodes have the same driver.",
    lambda f: f.gpus.driver if f.gpus and f.gpus.cards else None,
    "NCCL is tested with equal drivers", "one driver version on all nodes", "warn",
)  # fmt: skip
GPUS = _equal(
    "gpu", "gpus-equal", "All nodes have the same kind of GPU.",
    lambda f: ", ".join(sorted({card.name for card in f.gpus.cards})) or "no GPU" if f.gpus else None,
    "every step waits for the slowest; NCCL and gloo do not mix", "leave the other nodes out of the hostfile",
)  # fmt: skip
MTU = _equal(
    "network", "mtu-equal", "The cards between the nodes have the same MTU.",
    lambda f: str(f.network.outer_card.mtu) if f.network and f.network.outer_card else None,
    "large packets are dropped: small messages pass, the first collective hangs", "ip link set CARD mtu N, the same on all nodes",
)  # fmt: skip
CARD = _equal(
    "network", "card-name-equal", "The card has the same name on all nodes.",
    lambda f: f.network.outer_card.name if f.network and f.network.outer_card else None,
    "one value of NCCL_SOCKET_IFNAME does not fit all nodes", "a common prefix: NCCL_SOCKET_IFNAME=en", "warn",
)  # fmt: skip


@cluster_check("python")
def versions_equal(cluster: Cluster, needs: Needs) -> Verdict:
    """All nodes have the same versions of all packages."""
    names = sorted(
        {
            name
            for facts in cluster.facts.values()
            if facts.software
            for name in facts.software.packages
        }
    )
    differ = []
    for name in names:

        def version(facts: NodeFacts, name: str = name) -> str | None:
            return (facts.software.packages.get(name) or "missing") if facts.software else None

        found = cluster.by_value(version)
        if len(found) > 1:
            differ.append(f"{name} {_parties(found)}")
    if differ:
        return fail(
            " | ".join(differ),
            "ranks would run different programs",
            "make env on all nodes (constraints.txt has exact versions), or one wheel with the same constraints",
        )
    return ok(f"{len(names)} packages")


@cluster_check("gpu")
def slots_equal(cluster: Cluster, needs: Needs) -> Verdict:
    """The hostfile gives every node the same number of processes."""
    counts = sorted(set(cluster.slots.values()))
    if len(counts) > 1:
        return fail(
            ", ".join(f"{name} slots={n}" for name, n in cluster.slots.items()),
            "nodes with different numbers of processes are not supported",
            f"slots={counts[0]} everywhere",
        )
    return ok(f"slots={counts[0]}")


@cluster_check("nodes")
def distinct_machines(cluster: Cluster, needs: Needs) -> Verdict:
    """No two names in the hostfile are one machine."""
    same = cluster.by_value(lambda f: f.host.identity if f.host else None)
    twice = [nodes for nodes in same.values() if len(nodes) > 1]
    if twice:
        return fail(
            " and ".join(twice[0]) + " are one machine",
            "its GPUs would get two processes each",
            "one line per machine in the hostfile",
        )
    return ok(f"{len(cluster.facts)} machines")


@cluster_check("nodes")
def clocks(cluster: Cluster, needs: Needs) -> Verdict:
    """The clocks of the nodes agree."""
    if len(cluster.clocks) < 2:
        return skip("fewer than two clocks")
    ahead = {name: offset for name, (offset, _) in cluster.clocks.items()}
    first, last = min(ahead, key=ahead.__getitem__), max(ahead, key=ahead.__getitem__)
    skew = ahead[last] - ahead[first]
    doubt = cluster.clocks[first][1] + cluster.clocks[last][1]
    found = f"{last} is {format_seconds(skew)} ahead of {first} (+- {format_seconds(doubt)})"
    if skew - doubt > CLOCK_SKEW:
        return warn(
            found,
            "logs cannot be put in order; file times mislead `make` and caches",
            "sudo timedatectl set-ntp true",
        )
    return ok(f"within {format_seconds(max(skew, doubt))}")


@cluster_check("disk")
def shared_folder(cluster: Cluster, needs: Needs) -> Verdict:
    """What one node writes beside the run directory, every other reads."""
    if not cluster.shared:
        return skip("not tried")
    broken = {name: text for name, text in cluster.shared.items() if isinstance(text, str)}
    if broken:
        return fail(
            "; ".join(f"{name}: {text}" for name, text in broken.items()),
            "every node writes its part of a checkpoint",
            "run.dir=FOLDER that all nodes may write",
        )
    blind = {name: missing for name, missing in cluster.shared.items() if missing}
    if blind:
        name, missing = next(iter(blind.items()))
        return fail(
            f"{name} does not see what {', '.join(missing)} wrote",
            "checkpoints would be in pieces on different disks",
            "run.dir=FOLDER on a file system that all nodes share",
        )
    return ok(f"{len(cluster.shared)} nodes see each other's files")


@cluster_check("network")
def master_equal(cluster: Cluster, needs: Needs) -> Verdict:
    """All nodes understand the same address under the master's name."""
    found = cluster.by_value(
        lambda f: (
            f.network.master_addresses[0] if f.network and f.network.master_addresses else None
        )
    )
    others = {address: nodes for address, nodes in found.items() if not is_loopback(address)}
    if len(others) > 1:
        return fail(
            _parties(others),
            f"{cluster.master} is another machine for some",
            "--master-addr ADDRESS",
        )
    return ok(next(iter(others))) if others else skip("known on no node")


@cluster_check("network")
def connections(cluster: Cluster, needs: Needs) -> Verdict:
    """Every node reaches every other one, on the master's port and on a high one."""
    if not cluster.connections:
        return skip("not tried")
    broken = [f"{a} -> {b}: {error}" for (a, b), error in cluster.connections.items() if error]
    if broken:
        more = f" and {len(broken) - 4} more" if len(broken) > 4 else ""
        return fail(
            "; ".join(broken[:4]) + more,
            "NCCL and gloo connect every node with every other, both ways",
            "open all TCP ports between the nodes",
        )
    return ok(f"{len(cluster.connections)} directions")


@cluster_check("network")
def all_reduce(cluster: Cluster, needs: Needs) -> Verdict:
    """A real all-reduce between the nodes (gloo over TCP, one process per node), and its bandwidth."""
    measured = cluster.all_reduce
    if not isinstance(measured, Bandwidth):
        return (
            skip(measured)
            if measured.startswith("not ")
            else fail(
                measured,
                "the run's first collective would fail alike",
                "see hostname, card-named and connections above",
            )
        )
    found = f"{format_size(measured.bytes_per_second)}/s over {measured.ranks} nodes"
    if needs.traffic:
        found += f"; {format_size(needs.traffic)} per GPU and step with {needs.recipe}"
    if measured.bytes_per_second < SLOW_BANDWIDTH:
        return warn(
            found,
            "several nodes are then slower than one",
            "a faster card: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME",
        )
    return ok(found)
