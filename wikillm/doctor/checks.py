"""What a check is: a pure function of facts. So each judgement is tested with recorded facts.

The name, group and help sentence of a check are the function's name, the group it is declared in,
and its docstring. What follows from a finding and how to fix it stand in `texts.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from wikillm.doctor.texts import TEXTS

if TYPE_CHECKING:
    from wikillm.doctor.facts import ClusterFacts, NodeFacts
    from wikillm.doctor.needs import Needs

Level = Literal["ok", "warn", "fail", "skip"]
GROUPS = (
    "nodes", "python", "gpu", "host", "compiler", "disk", "network", "hubs", "environment", "run",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """`found`: what is there, `why`: what follows from it, `fix`: what to type."""

    level: Level
    found: str
    why: str = ""
    fix: str = ""
    name: str = ""
    group: str = ""
    node: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer of a check. `case` and `values` select and fill its text."""

    level: Level
    found: str
    case: str = ""
    values: tuple[tuple[str, object], ...] = ()

    def verdict(self, name: str, group: str, node: str = "") -> Verdict:
        if self.level in ("ok", "skip"):
            return Verdict(self.level, self.found, "", "", name, group, node)
        why, fix = TEXTS[f"{name}/{self.case}" if self.case else name]
        values = dict(self.values)
        why, fix = why.format(**values), fix.format(**values)
        return Verdict(self.level, self.found, why, fix, name, group, node)


def ok(found: str) -> Finding:
    return Finding("ok", found)


def skip(found: str) -> Finding:
    """The question does not arise, or cannot be answered; `found` says which."""
    return Finding("skip", found)


def warn(found: str, case: str = "", /, **values: object) -> Finding:
    """The run can work, but slower, or not for long."""
    return Finding("warn", found, case, tuple(values.items()))


def fail(found: str, case: str = "", /, **values: object) -> Finding:
    """The run would not work."""
    return Finding("fail", found, case, tuple(values.items()))


@dataclass(frozen=True, slots=True)
class NodeCheck:
    """Runs for every node. `section` is the part of the facts that it reads."""

    name: str
    group: str
    about: str
    section: str
    look: Callable[[NodeFacts, Needs], Finding]

    def judge(self, facts: NodeFacts, needs: Needs, node: str = "") -> Verdict:
        if getattr(facts, self.section) is None:
            return skip(f"{self.section} is not known").verdict(self.name, self.group, node)
        return self.look(facts, needs).verdict(self.name, self.group, node)


@dataclass(frozen=True, slots=True)
class ClusterCheck:
    """Runs once over all nodes, where there are several."""

    name: str
    group: str
    about: str
    look: Callable[[ClusterFacts, Needs], Finding]

    def judge(self, cluster: ClusterFacts, needs: Needs) -> Verdict:
        return self.look(cluster, needs).verdict(self.name, self.group)


def node_check(
    group: str, section: str
) -> Callable[[Callable[[NodeFacts, Needs], Finding]], NodeCheck]:
    """Declare a check of a node."""
    return lambda look: NodeCheck(_name(look), group, look.__doc__ or "", section, look)


def cluster_check(group: str) -> Callable[[Callable[[ClusterFacts, Needs], Finding]], ClusterCheck]:
    """Declare a check across nodes."""
    return lambda look: ClusterCheck(_name(look), group, look.__doc__ or "", look)


def _name(look: Callable[..., Finding]) -> str:
    return look.__name__.replace("_", "-")
