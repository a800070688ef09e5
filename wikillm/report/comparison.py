"""Comparison of several runs: a table of results, and the settings that differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wikillm.core.units import format_count
from wikillm.ledger.record import History
from wikillm.observe import names
from wikillm.report.ledger_section import digest_of, read_history
from wikillm.report.run_files import RunFiles, labels, number
from wikillm.report.sections import cut, hours
from wikillm.report.starts import effort_of, starts_of

_OWN = frozenset({"run.name", "run.dir"})
"""Settings that differ between any two runs."""


def comparison(runs: Sequence[RunFiles], price: float | None) -> dict[str, Any]:
    """All values of the template compare.html.j2."""
    head = ["run", "folder", "#steps", "#tokens", "#training loss", "#validation", "#bits/byte"]
    head += ["#tokens/s", "#time", "#device hours", "ledger's digest"]
    if price is not None:
        head.append("#cost")
    return {
        "title": " / ".join(labels(runs))[:200],
        "head": head,
        "rows": [_row(label, run, price) for label, run in zip(labels(runs), runs, strict=True)],
        "difference_head": ["key", *labels(runs)],
        "differences": _differences(runs),
    }


def _row(label: str, run: RunFiles, price: float | None) -> list[str]:
    last = run.last
    evaluation = run.evaluations[-1] if run.evaluations else {}
    history = read_history(run.path)
    effort = effort_of(run, starts_of(run), price)
    losses = [
        number(last, names.LOSS),
        number(evaluation, names.EVAL_LOSS),
        number(evaluation, names.BITS_PER_BYTE),
    ]
    counts = [number(last, name) for name in (names.STEP, names.TOKENS)]
    speed = number(last, names.TOKENS_PER_SECOND)
    row = [
        label,
        str(run.path),
        *("-" if count is None else format_count(count) for count in counts),
        *("-" if loss is None else f"{loss:.4f}" for loss in losses),
        "-" if speed is None else format_count(speed),
        hours(effort.hours),
        f"{effort.device_hours:.3g}",
        digest_of(history) if isinstance(history, History) else "-",
    ]
    return row if effort.cost is None else [*row, f"{effort.cost:,.2f}"]


def _differences(runs: Sequence[RunFiles]) -> list[list[str]]:
    """[key, value in each run...] for each key whose value is not equal in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    rows = []
    for key in keys:
        if key in _OWN:
            continue
        values = [cut(run.settings[key].value) if key in run.settings else "-" for run in runs]
        if len(set(values)) > 1:
            rows.append([key, *values])
    return rows
