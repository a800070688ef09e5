"""`wikillm audit RUN`: prove from files which tokens a run was trained on."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from wikillm.cli.arguments import add_json
from wikillm.core.errors import ExitCode

if TYPE_CHECKING:
    from wikillm.ledger.audit import Audit

EPILOG = """
Reads RUN/ledger.jsonl, RUN/data.json, the checkpoints' states and the token store; changes nothing.
Exit codes: 0 proven, 4 not proven, 6 there is no ledger, or it is damaged.

examples:
  wikillm audit runs/wiki                              every step, every token
  wikillm audit runs/wiki --steps 1000:2000            these steps alone
  wikillm audit runs/wiki --no-tokens                  only the samples; needs no store
  wikillm audit copies/wiki --store copies/store       for copies of a run and its store
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the run directory")
    add("--steps", type=_steps, default=(None, None), metavar="A:B", help="from step A to step B")
    add("--no-tokens", action="store_true", help="do not compare digests with the store's tokens")
    help = "where the token store is now; for a mixture NAME=PLACE, once per source"
    add("--store", action="append", default=[], metavar="PLACE", help=help)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from wikillm.ledger.audit import audit_run

    first, last = args.steps
    found = audit_run(
        args.run,
        first_step=first,
        last_step=last,
        with_tokens=not args.no_tokens,
        stores=args.store,
    )
    print(json.dumps(found.to_json(), ensure_ascii=False) if args.json else "\n".join(_text(found)))
    return int(ExitCode.DONE if found.is_proven else ExitCode.DATA)


def _steps(text: str) -> tuple[int | None, int | None]:
    found = re.fullmatch(r"([1-9]\d*)?:([1-9]\d*)?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not A:B, steps from 1 on")
    return int(found[1]) if found[1] else None, int(found[2]) if found[2] else None


def _text(audit: Audit) -> list[str]:
    steps = f"steps {audit.first_step:,} to {audit.last_step:,}"
    samples = f"samples {audit.first:,} to {audit.stop - 1:,}"
    lines = [
        f"run        {audit.run}",
        f"ledger     process starts: {audit.segments}, steps redone after a resume: "
        f"{audit.superseded:,}, checkpoints that agree: {audit.checkpoints}",
    ]
    for window in audit.skipped:
        lines.append(f"skipped    samples {window.first:,} to {window.stop - 1:,}: {window.reason}")
    if audit.seconds:
        rate = audit.tokens_compared / audit.seconds
        lines.append(
            f"tokens     {audit.tokens_compared:,} compared in {audit.seconds:.1f} s, "
            f"{rate / 1e6:.1f} M/s"
        )
    if not audit.is_proven:
        for wrong in audit.wrong[:5]:
            lines.append(f"wrong      step {wrong.step:,}, {wrong.kind}: {wrong.text}")
        if len(audit.wrong) > 5:
            lines.append(f"           and {len(audit.wrong) - 5} more")
        return [*lines, f"not proven {steps}: the first wrong step is {audit.wrong[0].step:,}"]
    skipped = f", except {len(audit.skipped)} skipped windows" if audit.skipped else ""
    epochs = f" ({audit.epochs})" if audit.epochs else ""
    lines.append(
        f"proven     {steps}: {samples} in their order, each once per epoch{skipped}{epochs}"
    )
    if not audit.seconds:
        lines.append("           only the samples: digests were not compared with the store")
    return lines
