"""The list of all checks, in the order they are shown."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import TypeVar

from wikillm.doctor.checks import cluster as cluster_checks
from wikillm.doctor.checks import compiler, disk, environment, gpus, host, network, python
from wikillm.doctor.cluster import Cluster
from wikillm.doctor.facts import NodeFacts
from wikillm.doctor.needs import Needs
from wikillm.doctor.verdict import GROUPS, Check, ClusterCheck, Verdict, skip

_Kind = TypeVar("_Kind")


def _declared(kind: type[_Kind], *modules: ModuleType) -> tuple[_Kind, ...]:
    return tuple(
        value for module in modules for value in vars(module).values() if isinstance(value, kind)
    )


_MODULES = (python, gpus, host, compiler, disk, network, environment)
NODE_CHECKS = tuple(sorted(_declared(Check, *_MODULES), key=lambda c: GROUPS.index(c.group)))
CLUSTER_CHECKS = tuple(
    sorted(_declared(ClusterCheck, cluster_checks), key=lambda c: GROUPS.index(c.group))
)
REACH = ("reach", "nodes", (cluster_checks.judge_reach.__doc__ or "").strip())


def judge_node(node: str, facts: NodeFacts, needs: Needs) -> list[Verdict]:
    """All checks of one node. A section that could not be gathered is one problem; its checks are skipped."""
    verdicts = [
        Verdict(
            "fail" if error.startswith("no answer") else "warn",
            error,
            f"nothing is known about {section}; its checks are skipped",
            "a dead network mount, or a driver that hangs" if error.startswith("no answer") else "",
            f"facts-{section}",
            next(check.group for check in NODE_CHECKS if check.section == section),
            node,
        )
        for section, error in facts.errors.items()
    ]
    for check in NODE_CHECKS:
        known = getattr(facts, check.section) is not None
        verdict = check.judge(facts, needs) if known else skip(f"{check.section} is not known")
        verdicts.append(replace(verdict, name=check.name, group=check.group, node=node))
    return verdicts


def judge_cluster(cluster: Cluster, needs: Needs) -> list[Verdict]:
    """What concerns all nodes together: whether each can be reached, and, of several, whether they agree."""
    name, group, _ = REACH
    verdicts = [
        replace(
            cluster_checks.judge_reach(node, cluster.refusals.get(node)),
            name=name,
            group=group,
            node=node,
        )
        for node in cluster.names
    ]
    if len(cluster.names) > 1:
        verdicts += [
            replace(c.judge(cluster, needs), name=c.name, group=c.group) for c in CLUSTER_CHECKS
        ]
    return verdicts


def listed() -> list[tuple[str, str, str]]:
    """(group, name, sentence) of every check."""
    rows = [(c.group, c.name, c.about) for c in NODE_CHECKS]
    rows += [(c.group, c.name, c.about) for c in CLUSTER_CHECKS]
    return sorted([(REACH[1], REACH[0], REACH[2]), *rows], key=lambda row: GROUPS.index(row[0]))
