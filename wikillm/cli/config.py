"""`wikillm config show | schema`: a run's values with their origins, or the JSON Schema of a YAML
file."""

from __future__ import annotations

import argparse
import json

from wikillm.cli.run_config import add_run_config_arguments, resolve_run_config
from wikillm.config.json_schema import json_schema
from wikillm.config.keys import flat
from wikillm.config.resolved import to_rows
from wikillm.core.errors import ConfigError

EPILOG = """
`wikillm config schema > wikillm.schema.json` lets an editor complete and check the keys of a
YAML file that names it in its first line: # yaml-language-server: $schema=wikillm.schema.json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_config_arguments(parser)
    parser.epilog = EPILOG
    # `show` is read from `args.rest`: argparse would take the 5 of `--max_steps 5 show` as a
    # positional argument.
    parser.usage = (
        "wikillm config show [--origin] [--json] [--config NAME|FILE] [KEY=VALUE | --KEY VALUE ...]"
        "\n       wikillm config schema"
    )
    add = parser.add_argument
    add("--origin", action="store_true", help="also show where each value is set")
    add("--json", action="store_true", help="print one JSON object: key -> value, layer, where")


def run(args: argparse.Namespace) -> int:
    if args.rest == ["schema"]:
        print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
        return 0
    if args.rest[:1] != ["show"]:
        raise ConfigError(
            "`wikillm config` needs one of: show, schema.",
            got=" ".join(args.rest) or None,
            fix="wikillm config show --origin",
        )
    args.rest = args.rest[1:]
    resolved = resolve_run_config(args)
    if args.json:
        table = {}
        for name, value in flat(resolved.config).items():
            origin = resolved.origins[name]
            table[name] = {"value": value, "layer": origin.layer, "where": origin.where}
        print(json.dumps(table, indent=2, ensure_ascii=False))
        return 0
    rows = [(f"{name}={value}", origin) for name, value, origin in to_rows(resolved)]
    width = min(64, max(len(assignment) for assignment, _ in rows))
    for assignment, place in rows:
        print(f"{assignment:<{width}}  {place}" if args.origin else assignment)
    return 0
