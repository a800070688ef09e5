"""`wikillm prepare`: build the token store of a run, or find it built, and show what is in it."""

from __future__ import annotations

import argparse

from wikillm.cli.run_config import add_run_config_arguments, resolve_run_config

HELP = "Build the token store: documents, tokenizer, tokens."


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print a summary that a program can read, and nothing else")


def run(args: argparse.Namespace) -> int:
    import contextlib
    import json
    import os
    import sys

    from wikillm.core.errors import ExitCode
    from wikillm.data.prepare import prepare_store
    from wikillm.data.summary import summary_json, summary_of

    cfg = resolve_run_config(args).config.data
    if not args.json:
        print(summary_of(prepare_store(cfg)))
        return ExitCode.DONE
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        store = prepare_store(cfg)
    json.dump(summary_json(store), sys.stdout, indent=2, ensure_ascii=False)
    print()
    return ExitCode.DONE
