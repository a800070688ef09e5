"""`wikillm replay RUN --step N`: recompute a step, and check that its loss follows from its
data."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from wikillm.cli.arguments import add_json, positive
from wikillm.core.errors import ExitCode
from wikillm.core.world import adopt_open_mpi

if TYPE_CHECKING:
    from wikillm.train.replay import Replayed
    from wikillm.train.resume import Computed

EPILOG = """
Trains from the last checkpoint before the step, in a folder that is removed afterwards; the run
directory is only read. A run of several ranks is compared bit by bit if a launcher starts the same
number of ranks:
  wikillm replay runs/wiki --step 1342
  torchrun --nproc_per_node 8 -m wikillm replay runs/wiki --step 1342
Exit codes: 0 the step follows from its data, 3 hardware or nondeterminism, 4 different tokens.
"""
_SHOWN = 8  # documents


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the run directory")
    add("--step", type=positive, required=True, metavar="N", help="counted from 1")
    help = "a new folder to train in; with several nodes, a folder that all share"
    add("--work", type=Path, metavar="FOLDER", help=help)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from wikillm.train.replay import replay_step

    adopt_open_mpi()
    found = replay_step(args.run, args.step, args.work)
    if found is None:
        return int(ExitCode.DONE)
    if args.json:
        print(json.dumps({"verdict": found.verdict, **asdict(found)}, ensure_ascii=False))
    else:
        print("\n".join(_text(found)))
    codes = {"data": ExitCode.DONE, "tokens": ExitCode.DATA}
    return int(codes.get(found.verdict, ExitCode.MACHINE))


def _text(replayed: Replayed) -> list[str]:
    line = replayed.line
    logged = replayed.logged
    lines = [
        f"step       {line.step:,}, samples {line.first:,} to {line.stop - 1:,}, "
        f"computed from {replayed.checkpoint or 'the first step on'}",
        f"logged     at step {logged.step:,}: {_shown(logged)}",
        *(f"now        {_shown(each)}" for each in replayed.passes),
        f"tokens     {'equal to' if replayed.same_tokens else 'NOT equal to'} the ledger's",
        f"verdict    {replayed.verdict}{_why(replayed)}",
    ]
    for document in replayed.documents[:_SHOWN]:
        lines.append(f"           {document.source}: byte {document.offset:,}")
    if len(replayed.documents) > _SHOWN:
        lines.append(f"           and {len(replayed.documents) - _SHOWN:,} more documents")
    return lines


def _shown(computed: Computed) -> str:
    norm = "none" if computed.grad_norm is None else repr(computed.grad_norm)
    return f"loss {computed.loss!r}, gradient norm {norm}"


def _why(replayed: Replayed) -> str:
    """What the passes show about this machine, if the step differs from the log."""
    if replayed.verdict != "hardware or nondeterminism":
        return "" if replayed.is_exact else " (different number of ranks: compared within 1e-3)"
    if not replayed.repeats:
        return ": two passes on this machine differ"
    return ": passes on this machine agree with each other, but not with the run"
