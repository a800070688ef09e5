"""`wikillm status RUN`: what each node and rank of a run is doing, or how it ended."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from wikillm.core.units import format_count, format_seconds

if TYPE_CHECKING:
    from wikillm.supervise.status import RunStatus


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="the run directory, seen from any node that shares it"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    follow = "show the run as it trains, until it ends (Ctrl-C leaves it running)"
    parser.add_argument("--follow", action="store_true", help=follow)


def run(args: argparse.Namespace) -> int:
    from wikillm.supervise.status import read_status

    status = read_status(args.run)
    if args.follow:
        from wikillm.cli.follow import follow

        follow(args.run)
        status = read_status(args.run)
    if args.json:
        print(json.dumps(status.to_json(), indent=2, ensure_ascii=False))
        return 0
    for line in _lines(status):
        print(line)
    return 0


def _lines(status: RunStatus) -> list[str]:
    lines = [f"run        {status.run}", f"state      {status.state}"]
    if status.metrics:
        metrics = status.metrics
        loss = "not finite" if metrics["loss"] is None else f"{metrics['loss']:.4f}"
        speed = format_count(round(metrics["tokens_per_second"] or 0))
        age = format_seconds(status.to_json()["logged_seconds_ago"])
        done = f"step {metrics['step']:,}, {format_count(metrics['tokens'])} tokens"
        lines.append(f"progress   {done}, loss {loss}, {speed} tokens/s, {age} ago")
    if status.exit is not None:
        reason = str(status.exit.get("reason", "")).replace("\n", "\n           ")
        end = f"{status.exit.get('code')} at step {status.exit.get('step')}"
        lines.append(f"exit       {end}: {reason}")
    if not status.ranks:
        return [*lines, "ranks      none has reported yet"]
    head = f"{'rank':>5} {'host':<20} {'pid':>8} {'phase':<11} {'step':>9}"
    lines += ["", f"{head} {'standing':>9} {'seen':>9}  state"]
    for record, alive in zip(status.ranks, status.running, strict=True):
        end = "gone" if record.exit is None else f"exit {record.exit['code']}"
        process = f"{record.process.host:<20.20} {record.process.pid:>8}"
        ages = [format_seconds(s) for s in (record.standing, record.age(status.now))]
        lines.append(
            f"{record.rank:>5} {process} {record.phase:<11} {record.step:>9,} "
            f"{ages[0]:>9} {ages[1]:>9}  {'running' if alive else end}"
        )
    return lines
