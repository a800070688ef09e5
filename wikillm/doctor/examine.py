"""Examines this machine, or all nodes of a hostfile: from a request to verdicts in a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from wikillm.doctor.checks import Verdict
from wikillm.doctor.cluster_session import ClusterSession
from wikillm.doctor.facts import ClusterFacts, NodeFacts
from wikillm.doctor.needs import Needs, Request
from wikillm.doctor.network import addresses_of
from wikillm.doctor.questions import gather, judge_cluster, judge_node

SECONDS = 58.0


@dataclass(frozen=True, slots=True)
class Examination:
    """The result of an examination that took `seconds`."""

    nodes: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    seconds: float

    @property
    def failed(self) -> bool:
        return any(verdict.level == "fail" for verdict in self.verdicts)


def examine_here(request: Request, needs_for: Callable[[NodeFacts], Needs]) -> Examination:
    """Examine this machine. `needs_for` derives the number of processes from the GPUs found."""
    start = time.monotonic()
    facts = gather(request)
    name = facts.host.hostname if facts.host else "this machine"
    verdicts = judge_node(name, facts, needs_for(facts))
    return Examination((name,), tuple(verdicts), time.monotonic() - start)


def examine_nodes(
    slots: Mapping[str, int],
    request: Request,
    needs: Needs,
    *,
    workdir: str,
    environment: Mapping[str, str],
) -> Examination:
    """Examine all nodes over ssh.

    Args:
        slots: processes of each host, in the order of the hostfile.
        workdir: the checkout on the nodes.
        environment: the variables that a run would get there.
    """
    start = time.monotonic()
    names = tuple(slots)
    session = ClusterSession(names, workdir, start + SECONDS)
    try:
        cluster = ClusterFacts(
            names, slots, request.master, session.gather_facts(request, environment)
        )
        # Each step needs the previous one: names and addresses, then ports, then a collective.
        if len(session.open) > 1:
            cluster = replace(cluster, shared=session.share(request.run_dir))
            addresses = addresses_of(cluster)
            cluster = replace(cluster, connections=session.connect(addresses, request.master_port))
            cluster = replace(cluster, all_reduce=session.reduce(cluster, addresses))
        cluster = replace(cluster, unreachable=dict(session.unreachable))
    finally:
        session.close()
    verdicts = judge_cluster(cluster, needs)
    for name, facts in cluster.facts.items():
        verdicts += judge_node(name, facts, replace(needs, slots=slots[name]))
    return Examination(names, tuple(verdicts), time.monotonic() - start)
