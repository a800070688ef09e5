"""Runs all checks of this machine. With several nodes each node does this and sends the result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from wikillm.doctor import compiler, disk, environment, gpus, host, network, servers, software
from wikillm.doctor.checks import Check, Finding, checks_in, fail, skip
from wikillm.doctor.needs import Needs
from wikillm.doctor.probe import in_time

SECONDS = 15.0
MODULES = (software, gpus, host, compiler, disk, network, servers, environment)
NODE_CHECKS = checks_in(*MODULES)


@dataclass(frozen=True, slots=True)
class Examination:
    """The result of an examination that took `seconds`."""

    nodes: tuple[str, ...]
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def failed(self) -> bool:
        return any(finding.level == "fail" for finding in self.findings)


def examine_here(needs: Needs, node: str) -> Examination:
    """Examine this machine alone."""
    start = time.monotonic()
    findings = check_node(needs, node)
    return Examination((node,), tuple(findings), time.monotonic() - start)


def check_node(
    needs: Needs, node: str, checks: Sequence[Check] = NODE_CHECKS, seconds: float = SECONDS
) -> list[Finding]:
    """The findings of `checks` about this machine, all within about `seconds`."""
    gpus.read_gpus()  # several groups ask for them
    groups: dict[str, list[Check]] = {}
    for check in checks:
        # A group runs in one thread. Each server gets its own, since it may take seconds.
        group = check.name if check.group == "connectivity" else check.group
        groups.setdefault(group, []).append(check)
    found: dict[str, list[Finding]] = {group: [] for group in groups}

    def work(group: str) -> None:
        for check in groups[group]:
            found[group].append(check(needs, node))

    in_time({group: partial(work, group) for group in groups}, seconds)
    findings: list[Finding] = []
    for group, members in groups.items():
        answered = found[group][:]
        findings += answered
        if unanswered := members[len(answered) :]:
            findings += _without_answer(unanswered, node, seconds)
    return findings


def _without_answer(checks: Sequence[Check], node: str, seconds: float) -> list[Finding]:
    """A failure for the check that hangs, such as on a dead mount; skips for the next checks."""
    first, *others = checks
    found = f"no answer within {seconds:.0f} s"
    fix = "look for a dead network mount, a name server or a driver that hangs"
    hangs = fail(found, "the checks of this group that follow were not made", fix)
    skipped = [other.label(skip(f"{first.name} gave no answer"), node) for other in others]
    return [first.label(hangs, node), *skipped]
