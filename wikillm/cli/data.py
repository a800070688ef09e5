"""`wikillm data stats | show | verify | export | import | tokenizer`: inspect, check and convert
token stores."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from wikillm.cli.arguments import add_json, index, positive

if TYPE_CHECKING:
    from wikillm.data.store.store import Store

EPILOG = """
examples:
  wikillm data stats                                    documents, tokens, lengths, funnel
  wikillm data show 17 --split val                      a document, with its place in the source
  wikillm data show 17 --sample --sequence-length 512   the parts of sample 17 of training
  wikillm data verify --store stores/0123456789ab       every sha256 against the manifest
  wikillm data export --to megatron --out exports/tokens
  wikillm data import --from megatron old_document.bin --tokenizer qwen2-tokenizer --out stores/old
  wikillm data tokenizer                                how the tokenizer splits the held-out text
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    names = "stats|show|verify|export|import|tokenizer"
    actions = parser.add_subparsers(dest="action", metavar=names, required=True, help="what to do")
    stats = actions.add_parser("stats", help="documents, tokens, lengths, duplicates, the funnel")
    show = actions.add_parser("show", help="the N-th document, or with --sample the N-th sample")
    verify = actions.add_parser("verify", help="compare every sha256 with the manifest")
    export = actions.add_parser("export", help="write the store in another format")
    tokens = actions.add_parser("tokenizer", help="bytes per token, hanzi, unused tokens")
    imports = actions.add_parser("import", help="make a store from the tokens of another tool")
    _configure_show(show)
    help = "format"
    export.add_argument(
        "--to", choices=("megatron", "datatrove", "parquet"), required=True, help=help
    )
    export.add_argument("--out", metavar="FOLDER", required=True, help="a new or empty folder")
    _configure_import(imports)
    for action in (stats, show, verify, export, tokens):
        help = "a finished store (default: the newest in stores/)"
        action.add_argument("--store", metavar="FOLDER", help=help)
    for action in (stats, show, verify, export, tokens, imports):
        add_json(action, "print one JSON object instead of lines")


def _configure_show(show: argparse.ArgumentParser) -> None:
    add = show.add_argument
    add("number", metavar="N", type=index, help="counted from 0")
    help = "its split (default train)"
    add("--split", choices=("train", "val"), default="train", help=help)
    add("--sample", action="store_true", help="show training sample N instead")
    help = "train.sequence_length of the run"
    add("--sequence-length", type=positive, metavar="T", help=help)
    add("--seed", type=index, metavar="S", help="run.seed of the run")
    help = "data.window_shards of the run"
    add("--window-shards", type=positive, metavar="K", help=help)
    help = "data.packing of the run"
    add("--packing", choices=("concat", "best_fit"), default="concat", help=help)


def _configure_import(imports: argparse.ArgumentParser) -> None:
    help = "Megatron: PREFIX.bin (PREFIX.idx beside it); datatrove: FILE.ds"
    imports.add_argument("files", metavar="FILE", nargs="+", help=help)
    help = "format"
    imports.add_argument(
        "--from", dest="kind", choices=("megatron", "datatrove"), required=True, help=help
    )
    help = "the tokenizer that made the tokens"
    imports.add_argument("--tokenizer", metavar="FOLDER", required=True, help=help)
    help = "the new store, for data.store=FOLDER"
    imports.add_argument("--out", metavar="FOLDER", required=True, help=help)
    help = "held-out share (default 0.005)"
    imports.add_argument("--val-fraction", type=float, default=0.005, metavar="F", help=help)


def run(args: argparse.Namespace) -> int:
    from wikillm.data.inspect.stats import find_store, stats_of, stats_text
    from wikillm.data.inspect.verify import verify
    from wikillm.data.store.store import Store

    if args.action == "import":
        return _import(args)
    store = Store.open(find_store(args.store))
    if args.action == "stats":
        print(_json(stats_of(store)) if args.json else stats_text(store))
    elif args.action == "show":
        return _show(args, store)
    elif args.action == "verify":
        checked = verify(store)
        size = f"{checked['files']} files, {checked['bytes']:,} bytes"
        text = f"{store.dir}: {size}, every sha256 matches the manifest"
        print(_json(checked) if args.json else text)
    elif args.action == "tokenizer":
        from wikillm.data.prepare.tokenizer_report import report_of_store, report_text

        found = report_of_store(store)
        print(_json(found) if args.json else report_text(found))
    else:
        from wikillm.data.inspect.exports import export_store

        paths = [str(path) for path in export_store(store, args.to, Path(args.out))]
        print(_json({"store": str(store.dir), "files": paths}) if args.json else "\n".join(paths))
    return 0


def _show(args: argparse.Namespace, store: Store) -> int:
    from wikillm.data.inspect.show import show_document, show_sample, show_text

    if args.sample:
        from wikillm.config.schema import RunSection
        from wikillm.config.schema_data import DataSection
        from wikillm.config.schema_train import TrainSection

        found = show_sample(
            store,
            args.number,
            sequence_length=args.sequence_length or TrainSection().sequence_length,
            seed=RunSection().seed if args.seed is None else args.seed,
            window_shards=args.window_shards or DataSection().window_shards,
            packing=args.packing,
        )
    else:
        found = show_document(store, args.split, args.number)
    print(_json(found) if args.json else show_text(found))
    return 0


def _import(args: argparse.Namespace) -> int:
    from wikillm.data.inspect.imports import import_store
    from wikillm.data.inspect.summary import store_summary, store_summary_json

    files = [Path(file) for file in args.files]
    store = import_store(args.kind, files, Path(args.tokenizer), Path(args.out), args.val_fraction)
    if args.json:
        print(_json(store_summary_json(store.dir, store.manifest)))
    else:
        print(store_summary(store.dir, store.manifest))
    return 0


def _json(value: dict[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False)
