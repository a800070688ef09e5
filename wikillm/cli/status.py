"""`wikillm status RUN`: what each node and rank of a run is doing, or how it ended."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wikillm.supervise.status import RunStatus

HELP = "What every node and rank of a run is doing, or how it ended."


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="the run directory, seen from any node that shares it"
    )
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    import json

    from wikillm.supervise.status import read_status

    status = read_status(args.run)
    if args.json:
        print(json.dumps(status.to_json(), indent=2, ensure_ascii=False))
        return 0
    for line in _lines(status):
        print(line)
    return 0


def _lines(status: RunStatus) -> list[str]:
    from wikillm.core.units import format_count, format_seconds

    found, metrics = status.to_json(), status.metrics or {}
    lines = [f"run        {status.run}", f"state      {status.state}"]
    if metrics:
        lines.append(
            f"progress   step {metrics['step']:,}, {format_count(metrics['tokens'])} tokens, "
            f"loss {'not finite' if metrics['loss'] is None else format(metrics['loss'], '.4f')}, "
            f"{format_count(round(metrics['tokens_per_second'] or 0))} tokens/s, {format_seconds(found['logged_seconds_ago'])} ago"
        )
    if status.exit is not None:
        reason = str(status.exit.get("reason", "")).replace("\n", "\n           ")
        lines.append(
            f"exit       {status.exit.get('code')} at step {status.exit.get('step')}: {reason}"
        )
    if not status.ranks:
        return [*lines, "ranks      none has reported yet"]
    lines.append("")
    lines.append(
        f"{'rank':>5} {'host':<20} {'pid':>8} {'phase':<11} {'step':>9} {'standing':>9} {'seen':>9}  state"
    )
    for record, alive in zip(status.ranks, status.running, strict=True):
        state = (
            "running"
            if alive
            else f"exit {record.exit['code']}"
            if record.exit is not None
            else "gone"
        )
        lines.append(
            f"{record.rank:>5} {record.process.host:<20.20} {record.process.pid:>8} {record.phase:<11} {record.step:>9,} "
            f"{format_seconds(record.standing):>9} {format_seconds(record.age(status.now)):>9}  {state}"
        )
    return lines
