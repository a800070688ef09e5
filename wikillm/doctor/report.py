"""An examination as lines for a terminal, and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from wikillm.doctor.checks import GROUPS, Verdict
from wikillm.doctor.examine import Examination

_WORDS = {"fail": "failed", "warn": "warnings", "ok": "ok", "skip": "not asked"}
WIDTH = 120


def to_json(examination: Examination) -> dict[str, Any]:
    """Counts and every verdict; `node` is "" where a verdict is about all nodes."""
    return {
        "nodes": list(examination.nodes),
        "seconds": round(examination.seconds, 2),
        "failed": examination.failed,
        "counts": _counts(examination.verdicts),
        "checks": [asdict(verdict) for verdict in examination.verdicts],
    }


def lines(examination: Examination, *, everything: bool = False) -> list[str]:
    """Counts and problems of each group; with `everything`, all its verdicts."""
    out = []
    for group in GROUPS:
        verdicts = [verdict for verdict in examination.verdicts if verdict.group == group]
        if verdicts:
            out.append(f"{group:<14}{_summary(verdicts)}")
        shown = [v for v in verdicts if everything or v.level in ("fail", "warn")]
        # The same finding of several nodes is shown once; failures come first.
        by_finding: dict[tuple[str, str, str], list[Verdict]] = {}
        for verdict in sorted(shown, key=lambda verdict: list(_WORDS).index(verdict.level)):
            by_finding.setdefault((verdict.name, verdict.level, verdict.found), []).append(verdict)
        for found in by_finding.values():
            out += _expanded(found, len(examination.nodes) > 1)
    checks = len({verdict.name for verdict in examination.verdicts})
    nodes = examination.nodes
    where = nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes"
    total = f"{checks} checks in {examination.seconds:.1f} s: {_summary(examination.verdicts)}"
    return [*out, "", f"{where}, {total}"]


def _counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    return {level: sum(verdict.level == level for verdict in verdicts) for level in _WORDS}


def _summary(verdicts: Sequence[Verdict]) -> str:
    counts = _counts(verdicts).items()
    return ", ".join(f"{count} {_WORDS[level]}" for level, count in counts if count)


def _expanded(verdicts: list[Verdict], has_many_nodes: bool) -> list[str]:
    first = verdicts[0]
    nodes = ", ".join(verdict.node for verdict in verdicts if verdict.node)
    where = f"{nodes}: " if nodes and has_many_nodes else ""
    head = f"  {first.level:<5} {first.name:<18} "
    indent = " " * len(head)
    text = f"{where}{first.found}"
    out = textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=indent) or [head]
    out += textwrap.wrap(first.why, WIDTH, initial_indent=indent, subsequent_indent=indent)
    return [*out, f"{indent}fix: {first.fix}"] if first.fix else out
