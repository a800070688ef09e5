"""Defines a check: a function that measures one thing and says whether it is fit for the run.

The checks of a node take what the run needs; those of several nodes take what the nodes sent. A
check's name is its function's name, its sentence is the docstring.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal

from wikillm.core.log import logger

Level = Literal["ok", "warn", "fail", "skip"]
GROUPS = (
    "nodes", "python", "gpu", "host", "compiler", "disk", "network", "connectivity", "environment",
    "run",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """`found`: the fact, `why`: its consequence, `fix`: what to do about it.

    `node` is "" where a finding is about all nodes.
    """

    level: Level
    found: str
    why: str = ""
    fix: str = ""
    name: str = ""
    group: str = ""
    node: str = ""


def ok(found: str) -> Finding:
    return Finding("ok", found)


def skip(found: str) -> Finding:
    """The question does not arise, or cannot be answered; `found` says which."""
    return Finding("skip", found)


def warn(found: str, why: str, fix: str = "") -> Finding:
    """The run can work, but slower, or not for long."""
    return Finding("warn", found, why, fix)


def fail(found: str, why: str, fix: str = "") -> Finding:
    """The run would not work."""
    return Finding("fail", found, why, fix)


@dataclass(frozen=True, slots=True)
class Check:
    """`look` measures and judges; `about` is the sentence that `--list` shows."""

    name: str
    group: str
    about: str
    look: Callable[[Any], Finding]

    def __call__(self, subject: object, node: str = "") -> Finding:
        """The finding about `subject`. A check that breaks is a warning, not the end of all."""
        try:
            finding = self.look(subject)
        except Exception as error:
            logger.warning("check %s", self.name, exc_info=error)
            finding = warn(f"{type(error).__name__}: {error}", "this could not be checked")
        return self.names(finding, node)

    def names(self, finding: Finding, node: str = "") -> Finding:
        """`finding` as the answer of this check."""
        return replace(finding, name=self.name, group=self.group, node=node)


def check(group: str) -> Callable[[Callable[[Any], Finding]], Check]:
    """Declare a check."""
    return lambda look: Check(look.__name__.replace("_", "-"), group, look.__doc__ or "", look)


def declared(*modules: ModuleType) -> tuple[Check, ...]:
    """The checks in `modules`, in the order of GROUPS."""
    members = [value for module in modules for value in vars(module).values()]
    checks = [value for value in members if isinstance(value, Check)]
    return tuple(sorted(checks, key=lambda check: GROUPS.index(check.group)))
