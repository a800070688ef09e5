"""`wikillm config show`: every value of a run and, with `--origin`, where it comes from. Starts nothing."""

from __future__ import annotations

import argparse
import json

from wikillm.cli.run_config import add_run_config_arguments, resolve_run_config

HELP = "Show a run's configuration and where each value comes from."


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_config_arguments(parser)
    # `show` is read from the other words: as a positional argument it would swallow the 5 of `--max_steps 5 show`.
    parser.usage = (
        "wikillm config show [--origin] [--json] [--config NAME|FILE] [KEY=VALUE | --KEY VALUE ...]"
    )
    parser.add_argument(
        "--origin", action="store_true", help="also show where each value comes from"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object: key -> value, layer, where"
    )


def run(args: argparse.Namespace) -> int:
    from wikillm.config.keys import flat
    from wikillm.config.resolved import to_rows
    from wikillm.core.errors import ConfigError

    if not args.rest or args.rest[0] != "show":
        got = " ".join(args.rest) or None
        raise ConfigError(
            "`wikillm config` needs to know what to do.",
            got=got,
            fix="wikillm config show --origin",
        )
    args.rest = args.rest[1:]
    resolved = resolve_run_config(args)
    if args.json:
        values = flat(resolved.config)
        table = {
            name: {
                "value": value,
                "layer": resolved.origins[name].layer,
                "where": resolved.origins[name].where,
            }
            for name, value in values.items()
        }
        print(json.dumps(table, indent=2, ensure_ascii=False))
        return 0
    rows = [(f"{name}={value}", origin) for name, value, origin in to_rows(resolved)]
    width = min(64, max(len(assignment) for assignment, _ in rows))
    for assignment, origin in rows:
        print(f"{assignment:<{width}}  {origin}" if args.origin else assignment)
    return 0
