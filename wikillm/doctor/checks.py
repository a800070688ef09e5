"""Defines a check: a pure function of facts, so that tests can judge recorded facts.

Name, group and help sentence of a check are the function's name, the group it is declared in, and
its docstring.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from wikillm.doctor.needs import Needs

Level = Literal["ok", "warn", "fail", "skip"]
GROUPS = (
    "nodes", "python", "gpu", "host", "compiler", "disk", "network", "connectivity", "environment",
    "run",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """`found`: the finding, `why`: its consequence, `fix`: what to do about it."""

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
    """The question does not arise, or cannot be answered; `found` says which."""
    return Verdict("skip", found)


def warn(found: str, why: str, fix: str = "") -> Verdict:
    """The run can work, but slower, or not for long."""
    return Verdict("warn", found, why, fix)


def fail(found: str, why: str, fix: str = "") -> Verdict:
    """The run would not work."""
    return Verdict("fail", found, why, fix)


@dataclass(frozen=True, slots=True)
class Check:
    """A check of one node, which reads the part `section` of its facts, or of all nodes."""

    name: str
    group: str
    about: str
    look: Callable[[Any, Needs], Verdict]
    section: str = ""

    def judge(self, facts: object, needs: Needs, node: str = "") -> Verdict:
        if self.section and getattr(facts, self.section) is None:
            found = skip(f"{self.section} is not known")
        else:
            found = self.look(facts, needs)
        return replace(found, name=self.name, group=self.group, node=node)


def check(group: str, section: str = "") -> Callable[[Callable[[Any, Needs], Verdict]], Check]:
    """Declare a check of one node, or without a `section`, of all nodes."""
    return lambda look: Check(
        look.__name__.replace("_", "-"), group, look.__doc__ or "", look, section
    )
