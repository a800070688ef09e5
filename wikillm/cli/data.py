"""`wikillm data stats | show | verify | export | import | tokenizer`: look into token stores, check them, take them along."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from wikillm.cli.arguments import index, positive

if TYPE_CHECKING:
    from wikillm.data.store.store import Store

HELP = "Look into a token store: stats, show N, verify, export, import, tokenizer."

EPILOG = """
examples:
  wikillm data stats                                    documents, tokens, a histogram of lengths, the funnel
  wikillm data show 17 --split val                      a document, with its place in the source
  wikillm data show 17 --sample --sequence-length 512   what sample 17 of training is made of
  wikillm data verify --store stores/0123456789ab       every sha256
  wikillm data stats --html stats.html                  the same as a page with pictures
  wikillm data export --to megatron --out exports/tokens
  wikillm data import --from megatron old_text_document.bin --tokenizer qwen2-tokenizer --out stores/old
  wikillm data tokenizer                                what the store's tokenizer makes of its held-out text
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    names = "stats|show|verify|export|import|tokenizer"
    actions = parser.add_subparsers(dest="action", metavar=names, required=True, help="what to do")
    stats = actions.add_parser("stats", help="documents, tokens, lengths, duplicates, the funnel")
    show = actions.add_parser(
        "show", help="the N-th document, or with --sample the N-th sample of training"
    )
    show.add_argument("number", metavar="N", type=index, help="counted from 0")
    show.add_argument(
        "--split", choices=("train", "val"), default="train", help="of the document (default train)"
    )
    show.add_argument(
        "--sample", action="store_true", help="the N-th sample of training instead of a document"
    )
    show.add_argument(
        "--sequence-length", type=positive, metavar="T", help="train.sequence_length of the run"
    )
    show.add_argument("--seed", type=index, metavar="S", help="run.seed of the run")
    show.add_argument(
        "--window-shards", type=positive, metavar="K", help="data.window_shards of the run"
    )
    show.add_argument(
        "--packing",
        choices=("concat", "best_fit"),
        default="concat",
        help="data.packing of the run",
    )
    verify = actions.add_parser("verify", help="compare every sha256 with the manifest")
    export = actions.add_parser("export", help="write the store in another format")
    export.add_argument(
        "--to", choices=("megatron", "datatrove", "parquet"), required=True, help="format"
    )
    export.add_argument(
        "--out", metavar="FOLDER", required=True, help="where to; nothing is overwritten"
    )
    tokens = actions.add_parser(
        "tokenizer", help="bytes per token, hanzi, unused tokens; compared with Qwen2's if here"
    )
    for action in (stats, show):
        action.add_argument(
            "--html", metavar="FILE", help="write a page that needs no network, instead of lines"
        )
    for action in (stats, show, verify, export, tokens):
        action.add_argument(
            "--store", metavar="FOLDER", help="a finished store (default: the newest in stores/)"
        )
    taken = actions.add_parser("import", help="make a store from tokens that others made")
    taken.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="Megatron: PREFIX.bin (PREFIX.idx beside it); datatrove: FILE.ds",
    )
    taken.add_argument(
        "--from", dest="kind", choices=("megatron", "datatrove"), required=True, help="format"
    )
    taken.add_argument(
        "--tokenizer", metavar="FOLDER", required=True, help="the tokenizer that made the tokens"
    )
    taken.add_argument(
        "--out", metavar="FOLDER", required=True, help="the new store: data.store=FOLDER"
    )
    taken.add_argument(
        "--val-fraction",
        type=float,
        default=0.005,
        metavar="F",
        help="held-out share (default 0.005)",
    )
    for action in (stats, show, verify, export, tokens, taken):
        action.add_argument(
            "--json", action="store_true", help="print one JSON object instead of lines"
        )


def run(args: argparse.Namespace) -> int:
    from wikillm.data.inspect.stats import find_store, stats_of, stats_text
    from wikillm.data.inspect.verify import verify
    from wikillm.data.store.store import Store

    if args.action == "import":
        return _import(args)
    store = Store.open(find_store(args.store))
    if args.action == "stats":
        if args.html:
            from wikillm.data.inspect.html import stats_page

            return _write(args, stats_page(store))
        print(_json(stats_of(store)) if args.json else stats_text(store))
    elif args.action == "show":
        return _show(args, store)
    elif args.action == "verify":
        checked = verify(store)
        text = f"{store.dir}: {checked['files']} files, {checked['bytes']:,} bytes, every sha256 is that of the manifest"
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
    from wikillm.config.schema import DataSection, RunSection, TrainSection
    from wikillm.data.inspect.show import show_document, show_sample, show_text

    if args.sample:
        train, data = TrainSection.model_fields, DataSection.model_fields
        found = show_sample(
            store,
            args.number,
            sequence_length=_or(args.sequence_length, train["sequence_length"].default),
            seed=_or(args.seed, RunSection.model_fields["seed"].default),
            window_shards=_or(args.window_shards, data["window_shards"].default),
            packing=args.packing,
        )
    else:
        found = show_document(store, args.split, args.number)
    if args.html:
        from wikillm.data.inspect.html import show_page

        return _write(args, show_page(store, found))
    print(_json(found) if args.json else show_text(found))
    return 0


def _import(args: argparse.Namespace) -> int:
    from wikillm.data.inspect.imports import import_store
    from wikillm.data.inspect.summary import store_summary, store_summary_json

    files = [Path(file) for file in args.files]
    store = import_store(args.kind, files, Path(args.tokenizer), Path(args.out), args.val_fraction)
    print(
        _json(store_summary_json(store.dir, store.manifest))
        if args.json
        else store_summary(store.dir, store.manifest)
    )
    return 0


def _write(args: argparse.Namespace, page: str) -> int:
    from wikillm.core.files import write_atomic

    Path(args.html).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(Path(args.html), page)
    print(_json({"html": args.html}) if args.json else args.html)
    return 0


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _json(found: dict[str, object]) -> str:
    return json.dumps(found, ensure_ascii=False)
