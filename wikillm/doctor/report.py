"""Formats an examination as lines for a terminal, and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from wikillm.doctor.checks import GROUPS, Finding
from wikillm.doctor.examine import Examination

_WORDS = {"fail": "failed", "warn": "warned", "ok": "ok", "skip": "skipped"}
WIDTH = 120


def to_json(examination: Examination) -> dict[str, Any]:
    """The counts and all findings. `node` is "" if a finding is about all nodes."""
    return {
        "nodes": list(examination.nodes),
        "seconds": round(examination.seconds, 2),
        "failed": examination.failed,
        "counts": _counts(examination.findings),
        "checks": [asdict(finding) for finding in examination.findings],
    }


def lines(examination: Examination, *, everything: bool = False) -> list[str]:
    """The counts and the problems of each group; with `everything`, all findings."""
    out = []
    for group in GROUPS:
        findings = [finding for finding in examination.findings if finding.group == group]
        if findings:
            out.append(f"{group:<14}{_summary(findings)}")
        shown = [v for v in findings if everything or v.level in ("fail", "warn")]
        # The same finding of several nodes is shown once; failures come first.
        by_finding: dict[tuple[str, str, str], list[Finding]] = {}
        for finding in sorted(shown, key=lambda finding: list(_WORDS).index(finding.level)):
            by_finding.setdefault((finding.name, finding.level, finding.found), []).append(finding)
        for found in by_finding.values():
            out += _expanded(found, len(examination.nodes) > 1)
    checks = len({finding.name for finding in examination.findings})
    nodes = examination.nodes
    where = nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes"
    total = f"{checks} checks in {examination.seconds:.1f} s: {_summary(examination.findings)}"
    return [*out, "", f"{where}, {total}"]


def _counts(findings: Sequence[Finding]) -> dict[str, int]:
    return {level: sum(finding.level == level for finding in findings) for level in _WORDS}


def _summary(findings: Sequence[Finding]) -> str:
    counts = _counts(findings).items()
    return ", ".join(f"{count} {_WORDS[level]}" for level, count in counts if count)


def _expanded(findings: list[Finding], has_many_nodes: bool) -> list[str]:
    first = findings[0]
    nodes = ", ".join(finding.node for finding in findings if finding.node)
    where = f"{nodes}: " if nodes and has_many_nodes else ""
    head = f"  {first.level:<5} {first.name:<18} "
    indent = " " * len(head)
    text = f"{where}{first.found}"
    out = textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=indent) or [head]
    out += textwrap.wrap(first.why, WIDTH, initial_indent=indent, subsequent_indent=indent)
    return [*out, f"{indent}fix: {first.fix}"] if first.fix else out
