"""`wikillm stop RUN`: end a run on all its nodes, with a checkpoint, or at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from wikillm.cli.arguments import not_negative
from wikillm.core.errors import MachineError

if TYPE_CHECKING:
    from wikillm.supervise.records import RankRecord
    from wikillm.supervise.stop import Stopped


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="the run directory, seen from any node that shares it"
    )
    parser.add_argument(
        "--now", action="store_true", help="without a checkpoint; on this machine also what hangs"
    )
    parser.add_argument(
        "--wait",
        type=not_negative,
        default=600.0,
        metavar="SECONDS",
        help="how long it may take to save (default 600)",
    )


def run(args: argparse.Namespace) -> int:
    from wikillm.supervise.stop import stop

    counts: list[int] = []

    def on_wait(running: list[RankRecord]) -> None:
        if counts[-1:] != [len(running)]:
            counts.append(len(running))
            hosts = ", ".join(sorted({record.process.host for record in running}))
            print(f"waiting for {_ranks(len(running))} on {hosts}")

    result = stop(args.run, at_once=args.now, timeout=args.wait, on_wait=on_wait)
    if result.left:
        places = [
            f"rank {r.rank}: pid {r.process.pid} on {r.process.host}, {r.phase}"
            + (f"; left alone: {result.not_ended[r.rank]}" if r.rank in result.not_ended else "")
            for r in result.left
        ]
        raise MachineError(
            f"{len(result.left)} of {len(result.left) + len(result.over)} ranks have not ended.",
            got="\n".join(places),
            fix=_fix(args.run, args.now, result),
        )
    print(f"ended: {_ranks(len(result.over))} of {args.run}")
    return 0


def _ranks(count: int) -> str:
    return f"{count} rank{'s' if count > 1 else ''}"


def _fix(run: Path, now: bool, result: Stopped) -> str:
    left = [record for record in result.left if record.rank in result.not_ended]
    pids = ",".join(str(record.process.pid) for record in left if record.process.is_here())
    if not pids:
        return f"wikillm stop {run} --now" + ("   (on those machines)" if now else "")
    others = f"if it is not of this run: rm {run}/ranks/rank_*.json"
    return f"look at what the record names: ps -fp {pids}\n{others}"
