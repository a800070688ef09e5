"""`wikillm data stats | show | verify | export`: look into a token store, check it, take it elsewhere."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "Look into a token store: stats, show N, verify, export."

EPILOG = """
examples:
  wikillm data stats                                    documents, tokens, a histogram of lengths, the funnel
  wikillm data show 17 --split val                      a document, with its place in the source
  wikillm data show 17 --sample --sequence-length 512   what sample 17 of training is made of
  wikillm data verify --store stores/0123456789ab       every sha256
  wikillm data export --to megatron --out exports/tokens
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", metavar="stats|show|verify|export", required=True, help="what to do")
    stats = actions.add_parser("stats", help="documents, tokens, lengths, copies, the funnel")
    show = actions.add_parser("show", help="the N-th document, or with --sample the N-th sample of training")
    show.add_argument("number", metavar="N", type=int, help="counted from 0")
    show.add_argument("--split", choices=("train", "val"), default="train", help="of the document (default train)")
    show.add_argument("--sample", action="store_true", help="the N-th sample of training instead of a document")
    show.add_argument("--sequence-length", type=int, metavar="T", help="train.sequence_length of the run")
    show.add_argument("--seed", type=int, metavar="S", help="run.seed of the run")
    show.add_argument("--window-shards", type=int, metavar="K", help="data.window_shards of the run")
    verify = actions.add_parser("verify", help="compare every sha256 with the manifest")
    export = actions.add_parser("export", help="write the store in another format")
    export.add_argument("--to", choices=("megatron", "parquet"), required=True, help="format")
    export.add_argument("--out", metavar="FOLDER", required=True, help="where to; nothing is overwritten")
    for action in (stats, show, verify, export):
        action.add_argument("--store", metavar="FOLDER", help="a finished store (default: the newest in stores/)")
        action.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(args: argparse.Namespace) -> int:
    from wikillm.config.schema import DataSection, RunSection, TrainSection
    from wikillm.data import inspect
    from wikillm.data.inspect_export import export_store
    from wikillm.data.store import Store

    store = Store.open(inspect.find_store(args.store))
    if args.action == "stats":
        print(_json(inspect.stats_of(store)) if args.json else inspect.stats_text(store))
    elif args.action == "show":
        if args.sample:
            train, data = TrainSection.model_fields, DataSection.model_fields
            found = inspect.show_sample(
                store,
                args.number,
                sequence_length=_or(args.sequence_length, train["sequence_length"].default),
                seed=_or(args.seed, RunSection.model_fields["seed"].default),
                window_shards=_or(args.window_shards, data["window_shards"].default),
            )
        else:
            found = inspect.show_document(store, args.split, args.number)
        print(_json(found) if args.json else inspect.show_text(found))
    elif args.action == "verify":
        checked = inspect.verify(store)
        text = (
            f"{store.dir}: {checked['files']} files, {checked['bytes']:,} bytes, every sha256 is that of the manifest"
        )
        print(_json(checked) if args.json else text)
    else:
        paths = [str(path) for path in export_store(store, args.to, Path(args.out))]
        print(_json({"store": str(store.dir), "files": paths}) if args.json else "\n".join(paths))
    return 0


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _json(found: dict[str, object]) -> str:
    return json.dumps(found, ensure_ascii=False)
