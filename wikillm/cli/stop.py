"""`wikillm stop RUN`: stop a run on all its nodes after saving a checkpoint; `--now` saves none."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from wikillm.cli.arguments import not_negative
from wikillm.core.errors import MachineError
from wikillm.supervise.records import RankRecord
from wikillm.supervise.stop import Stopped, stop


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    help = "the run directory, seen from any node that shares it"
    add("run", type=Path, metavar="RUN", help=help)
    help = "save no checkpoint; kill ranks of this machine that do not respond"
    add("--now", action="store_true", help=help)
    help = "time to wait for the ranks to save and end (default 600)"
    add("--wait", type=not_negative, default=600.0, metavar="SECONDS", help=help)


def run(args: argparse.Namespace) -> int:
    counts: list[int] = []

    def on_wait(running: list[RankRecord]) -> None:
        if counts[-1:] != [len(running)]:
            counts.append(len(running))
            hosts = ", ".join(sorted({record.process.host for record in running}))
            print(f"waiting for {_ranks(len(running))} on {hosts}")

    result = stop(args.run, at_once=args.now, timeout=args.wait, on_wait=on_wait)
    if result.remaining:
        places = [
            f"rank {r.rank}: pid {r.process.pid} on {r.process.host}, {r.phase}"
            + (f"; not killed: {result.spared[r.rank]}" if r.rank in result.spared else "")
            for r in result.remaining
        ]
        total = len(result.remaining) + len(result.ended)
        raise MachineError(
            f"{len(result.remaining)} of {total} ranks have not ended.",
            got="\n".join(places),
            fix=_fix(args.run, args.now, result),
        )
    print(f"ended: {_ranks(len(result.ended))} of {args.run}")
    return 0


def _ranks(count: int) -> str:
    return f"{count} rank{'s' if count > 1 else ''}"


def _fix(run: Path, now: bool, result: Stopped) -> str:
    spared = [record.process for record in result.remaining if record.rank in result.spared]
    pids = ",".join(str(process.pid) for process in spared if process.is_here())
    folder = shlex.quote(str(run))
    if not pids:
        return f"wikillm stop {folder} --now" + ("   (on those machines)" if now else "")
    hint = f"if it does not belong to this run: rm {folder}/ranks/rank_*.json"
    return f"check the process: ps -fp {pids}\n{hint}"
