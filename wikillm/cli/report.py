"""`wikillm report RUN...`: a page about one run, or about several runs overlaid."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from wikillm.cli.arguments import not_negative
from wikillm.core.errors import MachineError

EPILOG = """
examples:
  wikillm report runs/demo                        RUN/report.html, which each run also writes
  wikillm report runs/a runs/b --out ab.html      overlaid curves, and settings that differ
  wikillm report runs/demo --price 2.50 --open    with the cost, opened in a browser
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add = parser.add_argument
    add("runs", metavar="RUN", type=Path, nargs="+", help="run directories")
    help = "the page (default: RUN/report.html, or report.html for several runs)"
    add("--out", metavar="FILE", type=Path, help=help)
    add("--open", action="store_true", help="show it in the browser")
    help = "price per device-hour, in any currency"
    add("--price", metavar="PRICE", type=not_negative, help=help)


def run(args: argparse.Namespace) -> int:
    from wikillm.report.page import write_report

    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    page = write_report(args.runs, args.out, args.price)
    print(page)
    if args.open and not webbrowser.open(page.resolve().as_uri()):
        raise MachineError("No browser could be started.", fix=f"open {page} in a browser")
    return 0
