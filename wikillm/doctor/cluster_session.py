"""Holds the connections to all nodes during an examination, and queries them in parallel.

A node that does not answer is dropped with its reason; the others continue without it. Files,
ports and a collective are tried between the nodes, in four short steps.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from wikillm.doctor.facts import (
    Bandwidth,
    ClusterFacts,
    NodeFacts,
    NodeFailure,
    facts_from_json,
)
from wikillm.doctor.needs import Request
from wikillm.doctor.ssh_connection import Connection

START = 20.0
FACTS = 20.0
STEP = 7.0
REDUCE = 22.0
"""Limits of the steps in seconds. A node that hangs in a step is dropped for the next steps."""
MOST_PEERS = 16
"""Up to this number of nodes, each connects to all others; of more, to the first and next two."""


class ClusterSession:
    """`unreachable` grows as nodes are lost; `deadline` is a value of time.monotonic()."""

    def __init__(self, names: tuple[str, ...], workdir: str, deadline: float) -> None:
        self.names = names
        self.workdir = workdir
        self.deadline = deadline
        self.open: dict[str, Connection] = {}
        self.unreachable: dict[str, NodeFailure] = {}

    def gather_facts(
        self, request: Request, environment: Mapping[str, str]
    ) -> dict[str, NodeFacts]:
        """Connect to every node and gather its facts."""
        facts: dict[str, NodeFacts] = {}

        def connect_and_gather(name: str) -> None:
            self.open[name] = Connection(name, self.workdir)
            self._ask(name, "hello", START, environment=dict(environment))
            answer = self._ask(name, "facts", FACTS, request=asdict(request))
            try:
                facts[name] = facts_from_json(answer)
            except ValueError as error:
                reason = str(error).splitlines()[0]
                raise NodeFailure("python", f"another version answers: {reason}") from None

        self._each(self.names, connect_and_gather)
        return {name: facts[name] for name in self.names if name in facts}

    def share(self, folder: str) -> dict[str, tuple[str, ...] | str]:
        """Every node writes a file, then every node reads all of them."""
        token = secrets.token_hex(8)
        files = {name: f".wikillm-doctor-{token}-{i}" for i, name in enumerate(self.open)}
        owner = {file: name for name, file in files.items()}
        results: dict[str, tuple[str, ...] | str] = {}

        def write(name: str) -> None:
            try:
                self._ask(name, "write", STEP, folder=folder, file=files[name], text=token)
            except NodeFailure as lost:
                if lost.kind == "timeout":
                    raise
                results[name] = lost.text

        self._each(tuple(self.open), write)
        written = {files[name]: token for name in self.open if name not in results}

        def look(name: str) -> None:
            missing = self._ask(name, "look", STEP + 2, folder=folder, names=written)
            results.setdefault(name, tuple(owner[file] for file in missing))

        self._each(tuple(self.open), look)
        return results

    def connect(self, addresses: Mapping[str, str], master_port: int) -> dict[tuple[str, str], str]:
        """All nodes listen on the master's port and a free one, then connect to their peers."""
        token = secrets.token_hex(8)
        ports: dict[str, list[int]] = {}

        def listen(name: str) -> None:
            own = f"{token} {name}"
            ports[name] = self._ask(name, "listen", STEP, ports=[master_port, 0], token=own)

        self._each(tuple(self.open), listen)
        found: dict[tuple[str, str], str] = {}

        def connect(name: str) -> None:
            targets = [
                (peer, addresses[peer], port, f"{token} {peer}")
                for peer in self._peers(name)
                for port in ports.get(peer, [])
                if port and peer in addresses
            ]
            for peer, error in self._ask(name, "connect", STEP, targets=targets).items():
                found[(name, peer)] = error

        self._each(tuple(ports), connect)
        return found

    def reduce(self, cluster: ClusterFacts, addresses: Mapping[str, str]) -> Bandwidth | str:
        """Measure a collective of all reachable nodes: its bandwidth, or why there is none."""
        names = [name for name in self.names if name in self.open]
        if any(cluster.connections.values()) or len(names) < 2 or not set(names) <= set(addresses):
            return "not measured: the nodes do not all reach each other"
        if self.deadline - time.monotonic() < 12:
            return "not measured: the time was used up"
        self._each(tuple(names), lambda name: self._ask(name, "clean", STEP))
        (port,) = self._ask(names[0], "listen", STEP, ports=[0], token="")
        self._ask(names[0], "clean", STEP)
        answers: dict[str, dict[str, Any]] = {}

        def rank(name: str) -> None:
            card = cluster.facts[name].network.outer_card
            place = {"rank": names.index(name), "world": len(names), "port": port}
            place |= {"address": addresses[names[0]], "card": card.name if card else ""}
            answers[name] = self._ask(name, "all_reduce", REDUCE, **place)

        self._each(tuple(names), rank)
        broken = {name: answer["error"] for name, answer in answers.items() if "error" in answer}
        broken |= {name: self.unreachable[name].text for name in names if name not in self.open}
        if broken:
            return "; ".join(f"{name}: {error}" for name, error in broken.items())
        measured = answers[names[0]]
        return Bandwidth(measured["bytes_per_second"], measured["ranks"])

    def close(self) -> None:
        everyone = tuple(self.open)
        with ThreadPoolExecutor(max(1, len(everyone))) as pool:
            list(pool.map(lambda name: self.open[name].close(), everyone))

    def _peers(self, name: str) -> list[str]:
        others = [peer for peer in self.open if peer != name]
        if len(self.open) <= MOST_PEERS:
            return others
        ring = list(self.open)
        position = ring.index(name)
        near = [ring[0], *(ring[(position + k) % len(ring)] for k in (1, 2))]
        return [peer for peer in dict.fromkeys(near) if peer != name]

    def _ask(self, name: str, command: str, seconds: float, **arguments: Any) -> Any:
        remaining = max(0.1, self.deadline - time.monotonic())
        return self.open[name].ask(command, min(seconds, remaining), **arguments)

    def _each(self, names: tuple[str, ...], work: Callable[[str], None]) -> None:
        """Run `work` for all nodes at once; close those that fail, and keep the reasons."""

        def attempt(name: str) -> None:
            try:
                work(name)
            except NodeFailure as lost:
                self.unreachable[name] = lost

        if names:
            with ThreadPoolExecutor(len(names)) as pool:
                list(pool.map(attempt, names))
        for name in [name for name in names if name in self.unreachable and name in self.open]:
            self.open.pop(name).close()
