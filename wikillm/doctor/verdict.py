"""What a check says, and what a check is.

A check is a pure function of gathered facts; its name, its group and its sentence of help are the function's name, the
group it was declared in and its docstring. So every judgement can be tested with recorded facts, without a machine
that has the fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from wikillm.doctor.cluster import Cluster
    from wikillm.doctor.facts import NodeFacts
    from wikillm.doctor.needs import Needs

Level = Literal["ok", "warn", "fail", "skip"]
GROUPS = (
    "nodes",
    "python",
    "gpu",
    "host",
    "compiler",
    "disk",
    "network",
    "hubs",
    "environment",
    "run",
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`found` is what is there, `why` what follows from it, `fix` what to type. `name`, `group`, `node` come from outside."""

    level: Level
    found: str
    why: str = ""
    fix: str = ""
    name: str = ""
    group: str = ""
    node: str = ""


def ok(found: str) -> Verdict:
    return Verdict("ok", found)


def skip(found: str) -> Verdict:
    """The question does not arise here, or cannot be answered; `found` says which."""
    return Verdict("skip", found)


def warn(found: str, why: str, fix: str = "") -> Verdict:
    """The run can work; slower, or not for long."""
    return Verdict("warn", found, why, fix)


def fail(found: str, why: str, fix: str = "") -> Verdict:
    """The run would not work."""
    return Verdict("fail", found, why, fix)


@dataclass(frozen=True, slots=True)
class Check:
    """Asked of every node. `section` is the part of the facts that it reads."""

    name: str
    group: str
    about: str
    section: str
    judge: Callable[[NodeFacts, Needs], Verdict]


@dataclass(frozen=True, slots=True)
class ClusterCheck:
    """Asked once, of all nodes together; only where there are several."""

    name: str
    group: str
    about: str
    judge: Callable[[Cluster, Needs], Verdict]


def check(group: str, section: str) -> Callable[[Callable[[NodeFacts, Needs], Verdict]], Check]:
    """Declare a check of a node."""
    return lambda judge: Check(_name(judge), group, (judge.__doc__ or "").strip(), section, judge)


def cluster_check(group: str) -> Callable[[Callable[[Cluster, Needs], Verdict]], ClusterCheck]:
    """Declare a check across nodes."""
    return lambda judge: ClusterCheck(_name(judge), group, (judge.__doc__ or "").strip(), judge)


def _name(judge: Callable[..., Verdict]) -> str:
    return judge.__name__.replace("_", "-")
