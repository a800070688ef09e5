"""An examination as lines for a terminal, and as JSON."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import Any

from wikillm.doctor.checks import GROUPS, Level, Verdict
from wikillm.doctor.examine import Examination

_LEVELS: tuple[Level, ...] = ("fail", "warn", "ok", "skip")
_WORDS = {"fail": "failed", "warn": "warnings", "ok": "ok", "skip": "not asked"}
WIDTH = 120


def to_json(examination: Examination) -> dict[str, Any]:
    """Counts and every verdict; `node` is "" where a verdict is about all nodes."""
    return {
        "nodes": list(examination.nodes),
        "seconds": round(examination.seconds, 2),
        "failed": examination.failed,
        "counts": _counts(list(examination.verdicts)),
        "checks": [asdict(verdict) for verdict in examination.verdicts],
    }


def lines(examination: Examination, *, everything: bool = False) -> list[str]:
    """Group by group a count, and below it the problems; with `everything` also what is well."""
    out = []
    for group in GROUPS:
        verdicts = [verdict for verdict in examination.verdicts if verdict.group == group]
        if not verdicts:
            continue
        counts = ", ".join(
            f"{count} {_WORDS[level]}" for level, count in _counts(verdicts).items() if count
        )
        out.append(f"{group:<12}{counts}")
        shown = [v for v in verdicts if everything or v.level in ("fail", "warn")]
        for same in _together(shown):
            out += _expanded(same, examination)
    names = len({verdict.name for verdict in examination.verdicts})
    total = ", ".join(
        f"{count} {_WORDS[level]}"
        for level, count in _counts(list(examination.verdicts)).items()
        if count
    )
    where = (
        examination.nodes[0] if len(examination.nodes) == 1 else f"{len(examination.nodes)} nodes"
    )
    return [*out, "", f"{where}, {names} checks in {examination.seconds:.1f} s: {total}"]


def _counts(verdicts: list[Verdict]) -> dict[str, int]:
    return {level: sum(1 for verdict in verdicts if verdict.level == level) for level in _LEVELS}


def _together(verdicts: list[Verdict]) -> list[list[Verdict]]:
    """The same finding of several nodes is shown once; failures first."""
    found: dict[tuple[str, str, str], list[Verdict]] = {}
    for verdict in sorted(verdicts, key=lambda verdict: _LEVELS.index(verdict.level)):
        found.setdefault((verdict.name, verdict.level, verdict.found), []).append(verdict)
    return list(found.values())


def _expanded(same: list[Verdict], examination: Examination) -> list[str]:
    first = same[0]
    nodes = ", ".join(verdict.node for verdict in same if verdict.node)
    where = f"{nodes}: " if nodes and len(examination.nodes) > 1 else ""
    head, rest = f"  {first.level:<5} {first.name:<18} ", " " * 27
    out = textwrap.wrap(
        f"{where}{first.found}", WIDTH, initial_indent=head, subsequent_indent=rest
    ) or [head]
    if first.why:
        out += textwrap.wrap(first.why, WIDTH, initial_indent=rest, subsequent_indent=rest)
    if first.fix:
        out.append(f"{rest}fix: {first.fix}")
    return out
