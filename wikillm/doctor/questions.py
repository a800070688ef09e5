"""Gathers the facts of a node and runs all checks, in the order in which they are shown."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from wikillm.doctor import (
    compiler,
    disk,
    environment,
    gpus,
    host,
    network,
    nodes,
    servers,
    software,
)
from wikillm.doctor.checks import GROUPS, Check, Level, Verdict
from wikillm.doctor.facts import ClusterFacts, NodeFacts
from wikillm.doctor.needs import Needs, Request
from wikillm.doctor.nvidia_smi import gather_gpus
from wikillm.doctor.probe import run_in_time

SECONDS = 15.0
_OF_A_NODE = (software, gpus, host, compiler, disk, network, servers, environment)


def _declared(*modules: ModuleType) -> tuple[Check, ...]:
    found = [value for m in modules for value in vars(m).values() if isinstance(value, Check)]
    return tuple(sorted(found, key=lambda check: GROUPS.index(check.group)))


NODE_CHECKS = _declared(*_OF_A_NODE)
CLUSTER_CHECKS = tuple(check for check in _declared(nodes) if check is not nodes.REACH)


def gather(request: Request, seconds: float = SECONDS) -> NodeFacts:
    """Gather facts about this machine, within `seconds`."""
    sections: dict[str, Callable[[], Any]] = {
        "software": software.gather_software,
        "gpus": gather_gpus,
        "host": host.gather_host,
        "compiler": compiler.gather_compiler,
        "disk": lambda: disk.gather_disk(request),
        "network": lambda: network.gather_network(request),
        "connectivity": lambda: servers.gather_connectivity(request.servers),
        "environment": lambda: environment.relevant_environment(os.environ),
    }
    found, errors = run_in_time(sections, seconds)
    return NodeFacts(**found, errors=errors)


def judge_node(node: str, facts: NodeFacts, needs: Needs) -> list[Verdict]:
    """All checks of one node. An unknown section is one problem; its checks are skipped."""
    verdicts = []
    for section, error in facts.errors.items():
        group = next(check.group for check in NODE_CHECKS if check.section == section)
        hangs = error.startswith("no answer")
        why = f"nothing is known about {section}; its checks are skipped"
        fix = "look for a dead network mount, or a driver that hangs" if hangs else ""
        level: Level = "fail" if hangs else "warn"
        verdicts.append(Verdict(level, error, why, fix, f"facts-{section}", group, node))
    return verdicts + [check.judge(facts, needs, node) for check in NODE_CHECKS]


def judge_cluster(cluster: ClusterFacts, needs: Needs) -> list[Verdict]:
    """Check that each node can be reached and, with several nodes, that they agree."""
    answers = [(name, cluster.unreachable.get(name)) for name in cluster.names]
    verdicts = [nodes.REACH.judge(answer, needs, answer[0]) for answer in answers]
    if len(cluster.names) > 1:
        verdicts += [check.judge(cluster, needs) for check in CLUSTER_CHECKS]
    return verdicts


def listed() -> list[tuple[str, str, str]]:
    """(group, name, sentence) of every check."""
    checks = _declared(nodes, *_OF_A_NODE)
    return [(check.group, check.name, check.about) for check in checks]
