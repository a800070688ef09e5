"""What a check is: a pure function of facts. So each judgement is tested with recorded facts.

Name, group and help sentence of a check are the function's name, the group it is declared in, and
its docstring. What follows from a finding, and how to fix it, is in `texts.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from wikillm.doctor.needs import Needs
from wikillm.doctor.texts import TEXTS

Level = Literal["ok", "warn", "fail", "skip"]
GROUPS = (
    "nodes", "python", "gpu", "host", "compiler", "disk", "network", "connectivity", "environment",
    "run",
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


class Finding(NamedTuple):
    """The answer of a check. `case` selects its text, `values` fill it."""

    level: Level
    found: str
    case: str = ""
    values: dict[str, object] = {}


def ok(found: str) -> Finding:
    return Finding("ok", found)


def skip(found: str) -> Finding:
    """The question does not arise, or cannot be answered; `found` says which."""
    return Finding("skip", found)


def warn(found: str, case: str = "", /, **values: object) -> Finding:
    """The run can work, but slower, or not for long."""
    return Finding("warn", found, case, values)


def fail(found: str, case: str = "", /, **values: object) -> Finding:
    """The run would not work."""
    return Finding("fail", found, case, values)


@dataclass(frozen=True, slots=True)
class Check:
    """Of a node, where `section` is the part of the facts that it reads, or of all nodes."""

    name: str
    group: str
    about: str
    look: Callable[[Any, Needs], Finding]
    section: str = ""

    def judge(self, facts: object, needs: Needs, node: str = "") -> Verdict:
        if self.section and getattr(facts, self.section) is None:
            return self.verdict(skip(f"{self.section} is not known"), node)
        return self.verdict(self.look(facts, needs), node)

    def verdict(self, finding: Finding, node: str = "") -> Verdict:
        level, found, case, values = finding
        why = fix = ""
        if level in ("warn", "fail"):
            texts = TEXTS[f"{self.name}/{case}" if case else self.name]
            why, fix = (text.format(**values) for text in texts)
        return Verdict(level, found, why, fix, self.name, self.group, node)


def check(group: str, section: str = "") -> Callable[[Callable[[Any, Needs], Finding]], Check]:
    """Declare a check: of a node with its `section`, of all nodes without."""
    return lambda look: Check(
        look.__name__.replace("_", "-"), group, look.__doc__ or "", look, section
    )
