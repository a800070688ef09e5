"""What is known about all nodes together: facts of each, and what they found out about each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from wikillm.doctor.facts import NodeFacts


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a node gave no facts. `kind`: timeout, name, refused, key, changed-key, folder, python, other."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """`bytes_per_second` is bus bandwidth: 2 (n - 1) / n x size / time, comparable over numbers of ranks n."""

    bytes_per_second: float
    ranks: int
    size: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """`names` in the order of the hostfile; the first is where ranks meet unless `master` says otherwise.

    `clocks`: (seconds ahead of this machine, uncertainty). `shared`: per node the names whose files it did not see,
    or an error. `connections`: (from, to) -> "" or the error. `all_reduce`: the measurement, or why there is none.
    """

    names: tuple[str, ...]
    slots: Mapping[str, int]
    master: str
    workdir: str
    facts: Mapping[str, NodeFacts]
    refusals: Mapping[str, Refusal] = field(default_factory=dict)
    clocks: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    shared: Mapping[str, tuple[str, ...] | str] = field(default_factory=dict)
    connections: Mapping[tuple[str, str], str] = field(default_factory=dict)
    all_reduce: Bandwidth | str = "not measured"

    def by_value(self, value: Callable[[NodeFacts], str | None]) -> dict[str, list[str]]:
        """value -> the nodes that have it; nodes where it is None are left out."""
        found: dict[str, list[str]] = {}
        for name in self.names:
            if name in self.facts and (what := value(self.facts[name])) is not None:
                found.setdefault(what, []).append(name)
        return found
