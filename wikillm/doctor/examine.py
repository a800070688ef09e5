"""From a request to verdicts: this machine, or all nodes of a hostfile at once, in under a minute.

Nodes are asked in parallel. A node that does not answer is left behind with its reason; the others go on without it.
What has to be tried between nodes (files, ports, a collective) is tried by the agents, in four short steps.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from wikillm.doctor.checks.every import judge_cluster, judge_node
from wikillm.doctor.checks.network import is_loopback
from wikillm.doctor.cluster import Bandwidth, Cluster, Refusal
from wikillm.doctor.connection import Connection, NodeLost
from wikillm.doctor.facts import NodeFacts, facts_from_json
from wikillm.doctor.gather.everything import gather
from wikillm.doctor.needs import Needs, Request
from wikillm.doctor.verdict import Verdict

SECONDS = 58.0
START, FACTS, STEP, REDUCE = 20.0, 20.0, 7.0, 22.0
"""Limits of the steps. A node that hangs in one is lost for the next ones, so that the limits do not add up."""
MOST_PEERS = 16
"""Up to so many nodes everyone connects to everyone; more connect to the first and to the next two."""


@dataclass(frozen=True, slots=True)
class Examination:
    """`seconds` from start to end."""

    nodes: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    seconds: float

    @property
    def failed(self) -> bool:
        return any(verdict.level == "fail" for verdict in self.verdicts)


def examine_here(request: Request, needs_for: Callable[[NodeFacts], Needs]) -> Examination:
    """This machine alone. `needs_for` is told the facts: the number of processes follows from the GPUs that are here."""
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
    """All nodes over ssh. `slots` are the hosts of the hostfile in their order, `environment` is what a run gets there."""
    start = time.monotonic()
    visit = _Visit(tuple(slots), workdir, start + SECONDS)
    try:
        cluster = Cluster(
            tuple(slots), slots, request.master, workdir, *visit.meet(request, environment)
        )
        cluster = replace(cluster, clocks=visit.clocks)
        if len(visit.open) > 1:
            cluster = replace(cluster, shared=visit.share(request.run_dir))
            addresses = addresses_of(cluster)
            cluster = replace(cluster, connections=visit.connect(addresses, request.master_port))
            cluster = replace(cluster, all_reduce=visit.reduce(cluster, addresses))
        cluster = replace(cluster, refusals=dict(visit.refusals))
    finally:
        visit.close()
    verdicts = judge_cluster(cluster, needs)
    for name, facts in cluster.facts.items():
        verdicts += judge_node(name, facts, replace(needs, slots=slots[name]))
    return Examination(tuple(slots), tuple(verdicts), time.monotonic() - start)


def addresses_of(cluster: Cluster) -> dict[str, str]:
    """node -> the address that the others reach it by: where its packets to the master come from.

    The master's own is what the others understand under its name.
    """
    found: dict[str, str] = {}
    for name, facts in cluster.facts.items():
        if facts.network and facts.network.route and not is_loopback(facts.network.route[1]):
            found[name] = facts.network.route[1]
    first = next((name for name in cluster.names if name in cluster.facts), None)
    resolved = cluster.by_value(
        lambda f: (
            f.network.master_addresses[0] if f.network and f.network.master_addresses else None
        )
    )
    outer = [address for address in resolved if not is_loopback(address)]
    if first is not None and outer:
        found[first] = max(outer, key=lambda address: len(resolved[address]))
    return found


class _Visit:
    """The open connections of one examination; `refusals` grows as nodes are lost."""

    def __init__(self, names: tuple[str, ...], workdir: str, deadline: float) -> None:
        self.names, self.workdir, self.deadline = names, workdir, deadline
        self.open: dict[str, Connection] = {}
        self.refusals: dict[str, Refusal] = {}
        self.clocks: dict[str, tuple[float, float]] = {}

    def meet(
        self, request: Request, environment: Mapping[str, str]
    ) -> tuple[dict[str, NodeFacts], dict[str, Refusal]]:
        facts: dict[str, NodeFacts] = {}

        def first(name: str) -> None:
            self.open[name] = Connection(name, self.workdir)
            self._ask(name, "hello", START, environment=dict(environment))
            self.clocks[name] = min(
                (self._clock(name) for _ in range(3)), key=lambda clock: clock[1]
            )
            try:
                facts[name] = facts_from_json(
                    self._ask(name, "facts", FACTS, request=asdict(request))
                )
            except ValueError as error:
                raise NodeLost(
                    Refusal("python", f"another version answers: {str(error).splitlines()[0]}")
                ) from None

        self._each(self.names, first)
        return {name: facts[name] for name in self.names if name in facts}, self.refusals

    def share(self, folder: str) -> dict[str, tuple[str, ...] | str]:
        """Every node writes a file, then every node reads all of them."""
        token = secrets.token_hex(8)
        files = {
            name: (f".wikillm-doctor-{token}-{i}", f"{token} {i}")
            for i, name in enumerate(self.open)
        }
        results: dict[str, tuple[str, ...] | str] = {}

        def write(name: str) -> None:
            file, text = files[name]
            try:
                self._ask(name, "write", STEP, folder=folder, file=file, text=text)
            except NodeLost as lost:
                if lost.refusal.kind == "timeout":
                    raise
                results[name] = lost.refusal.text

        self._each(tuple(self.open), write)
        written = {files[name][0]: files[name][1] for name in self.open if name not in results}
        owner = {files[name][0]: name for name in files}

        def look(name: str) -> None:
            missing = self._ask(name, "look", STEP + 2, folder=folder, names=written)
            results.setdefault(name, tuple(owner[file] for file in missing))

        self._each(tuple(self.open), look)
        return results

    def connect(self, addresses: Mapping[str, str], master_port: int) -> dict[tuple[str, str], str]:
        """Every node listens on the master's port and on a free one; then every node connects to the others."""
        token = secrets.token_hex(8)
        ports: dict[str, list[int]] = {}

        def listen(name: str) -> None:
            ports[name] = self._ask(
                name, "listen", STEP, ports=[master_port, 0], token=f"{token} {name}"
            )

        self._each(tuple(self.open), listen)
        found: dict[tuple[str, str], str] = {}

        def dial(name: str) -> None:
            targets = [
                (peer, addresses[peer], port, f"{token} {peer}")
                for peer in self._peers(name)
                for port in ports.get(peer, [])
                if port and peer in addresses
            ]
            for peer, error in self._ask(name, "connect", STEP, targets=targets).items():
                found[(name, peer)] = error

        self._each(tuple(ports), dial)
        return found

    def reduce(self, cluster: Cluster, addresses: Mapping[str, str]) -> Bandwidth | str:
        """All reachable nodes take part in one collective."""
        names = [name for name in self.names if name in self.open]
        if any(cluster.connections.values()) or len(names) < 2 or not set(names) <= set(addresses):
            return "not measured: the nodes do not all reach each other"
        left = self.deadline - time.monotonic()
        if left < 12:
            return "not measured: no time was left"
        self._each(tuple(names), lambda name: self._ask(name, "clean", STEP))
        (port,) = self._ask(names[0], "listen", STEP, ports=[0], token="")
        self._ask(names[0], "clean", STEP)
        answers: dict[str, dict[str, Any]] = {}

        def rank(name: str) -> None:
            card = cluster.facts[name].network.outer_card
            answers[name] = self._ask(
                name, "all_reduce", REDUCE,
                rank=names.index(name), world=len(names), address=addresses[names[0]], port=port,
                card=card.name if card else "",
            )  # fmt: skip

        self._each(tuple(names), rank)
        broken = {name: answer["error"] for name, answer in answers.items() if "error" in answer}
        broken |= {name: self.refusals[name].text for name in names if name in self.refusals}
        if broken:
            return "; ".join(f"{name}: {error}" for name, error in broken.items())
        slowest = min(answers.values(), key=lambda answer: answer["bytes_per_second"])
        return Bandwidth(slowest["bytes_per_second"], slowest["ranks"], slowest["size"])

    def close(self) -> None:
        everyone = tuple(self.open)
        with ThreadPoolExecutor(max(1, len(everyone))) as pool:
            list(pool.map(lambda name: self.open[name].close(), everyone))

    def _peers(self, name: str) -> list[str]:
        others = [peer for peer in self.open if peer != name]
        if len(self.open) <= MOST_PEERS:
            return others
        ring = list(self.open)
        at = ring.index(name)
        return list(
            dict.fromkeys(
                peer
                for peer in (ring[0], *(ring[(at + k) % len(ring)] for k in (1, 2)))
                if peer != name
            )
        )

    def _clock(self, name: str) -> tuple[float, float]:
        """(seconds ahead of this machine, uncertainty): the answer was given at some moment of the round trip."""
        before = time.time()
        there = float(self._ask(name, "time", STEP))
        after = time.time()
        return there - (before + after) / 2, (after - before) / 2

    def _ask(self, name: str, command: str, seconds: float, **arguments: Any) -> Any:
        left = max(0.1, self.deadline - time.monotonic())
        return self.open[name].ask(command, min(seconds, left), **arguments)

    def _each(self, names: tuple[str, ...], work: Callable[[str], None]) -> None:
        """`work` for all at once; a node that fails is closed, and its reason kept."""

        def one(name: str) -> None:
            try:
                work(name)
            except NodeLost as lost:
                self.refusals[name] = lost.refusal

        if names:
            with ThreadPoolExecutor(len(names)) as pool:
                list(pool.map(one, names))
        for name in [name for name in names if name in self.refusals and name in self.open]:
            self.open.pop(name).close()
