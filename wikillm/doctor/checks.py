"""Defines a check: a function that measures one property and returns a finding about it.

Checks of one node take the `Needs` of the run, checks between nodes the `Cluster`. A check has
the name of its function, and its docstring is the sentence that `--list` shows.
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
    """The result of a check.

    Attributes:
        found: what was measured.
        why: its consequence for the run.
        fix: how to correct it.
        node: the node, "" for a finding about all nodes.
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
    """The check does not apply here, or cannot be made; `found` is the reason."""
    return Finding("skip", found)


def warn(found: str, why: str, fix: str = "") -> Finding:
    """The run works, but slowly, or may fail later."""
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
        """The finding about `subject`. An error in the check becomes a warning."""
        try:
            finding = self.look(subject)
        except Exception as error:
            logger.warning("check %s", self.name, exc_info=error)
            finding = warn(f"{type(error).__name__}: {error}", "the check itself failed")
        return self.label(finding, node)

    def label(self, finding: Finding, node: str = "") -> Finding:
        """`finding` with the name and the group of this check."""
        return replace(finding, name=self.name, group=self.group, node=node)


def check(group: str) -> Callable[[Callable[[Any], Finding]], Check]:
    """Declare a check."""
    return lambda look: Check(look.__name__.replace("_", "-"), group, look.__doc__ or "", look)


def checks_in(*modules: ModuleType) -> tuple[Check, ...]:
    """The checks in `modules`, in the order of GROUPS."""
    members = [value for module in modules for value in vars(module).values()]
    checks = [value for value in members if isinstance(value, Check)]
    return tuple(sorted(checks, key=lambda check: GROUPS.index(check.group)))
