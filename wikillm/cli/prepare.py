"""`wikillm prepare`: build the token store of a run, unless it exists, and show its contents."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from wikillm.cli.arguments import add_json, hours, positive, word
from wikillm.cli.run_config import add_run_config_arguments, resolve_run_config, split_settings
from wikillm.core.errors import ConfigError, DataError, ExitCode, Problems

if TYPE_CHECKING:
    from wikillm.config.schema_data import DataSection


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_config_arguments(parser)
    add_json(parser, "print only a summary as JSON")
    add = parser.add_argument
    help = (
        "read MediaWiki dumps (pages-articles*.xml.bz2) with settings for them: quality rules, no "
        "duplicates, Chinese in simplified characters"
    )
    add("--wiki", nargs="+", metavar="DUMP", help=help)
    help = (
        "only write the list of duplicates that data.dedup finds, without building a store. Any "
        "machine can read it as data.drop_list"
    )
    add("--drop-list-only", metavar="FILE", help=help)
    title = "on several machines that share the folders of sources and store"
    add_many = parser.add_argument_group(title).add_argument
    help = "who builds the shards: this machine, or a Slurm array"
    add_many("--executor", choices=("local", "slurm"), default="local", help=help)
    add_many("--shards", metavar="A:B|I/N", help="build only the shards A to B-1, or part I of N")
    help = "slurm: print the batch file; nothing is submitted"
    add_many("--print", action="store_true", help=help)
    help = "slurm: tasks of the array (default 16)"
    add_many("--tasks", type=positive, default=16, metavar="N", help=help)
    help = "slurm: CPUs per task (default 4)"
    add_many("--cpus", type=positive, default=4, metavar="N", help=help)
    help = "slurm: time limit of a task (default 24)"
    add_many("--hours", type=hours, default=24.0, metavar="H", help=help)
    add_many("--partition", type=word, metavar="NAME", help="slurm: partition")
    add_many("--account", type=word, metavar="NAME", help="slurm: account")


def run(args: argparse.Namespace) -> int:
    from wikillm.data.inspect.summary import summary_json, summary_of
    from wikillm.data.read.open import open_corpus
    from wikillm.data.text.attribution import ATTRIBUTION_NAME
    from wikillm.export.check_before_training import predict_export

    # Settings for dumps precede the user's arguments, so that the user's values win.
    notes = _insert_wiki_settings(args) if args.wiki else []
    run_config = resolve_run_config(args).config
    cfg = run_config.data
    _refuse_contradictions(args)
    # These options build no complete store.
    if args.drop_list_only is not None:
        return _make_drop_list(args, cfg)
    if args.executor == "slurm":
        print(_batch_file(args), end="")
        return ExitCode.DONE
    if args.shards is not None:
        from wikillm.data.prepare.parts import Part, build_part
        from wikillm.data.prepare.prepare import plan_store

        print(build_part(plan_store(cfg), Part.parse(args.shards)))
        return ExitCode.DONE
    with _no_output_if(args.json):
        for line in notes:
            print(line)
        corpus = open_corpus(cfg)
        # If the export would fail, report it now and not after the training.
        model = run_config.model
        predict_export(corpus.tokenizer_dir, model.architecture, model.init_from)
    if args.json:
        print(json.dumps(summary_json(corpus), indent=2, ensure_ascii=False))
        return ExitCode.DONE
    print(summary_of(corpus))
    if args.wiki:
        attribution = corpus.dir / ATTRIBUTION_NAME
        print(f"sources    named in {attribution}; publish it with the text")
        store = shlex.quote(f"data.store={corpus.dir}")
        print(f"next       wikillm train data.path=null {store}")
    return ExitCode.DONE


def _no_output_if(is_quiet: bool) -> AbstractContextManager[object]:
    return contextlib.redirect_stdout(io.StringIO()) if is_quiet else contextlib.nullcontext()


def _make_drop_list(args: argparse.Namespace, cfg: DataSection) -> int:
    from wikillm.data.prepare.dedup import write_drop_list_of
    from wikillm.data.prepare.prepare import plan_store

    if cfg.dedup == "none" and cfg.drop_list is None:
        what = "There is no drop-list to make: data.dedup=none keeps duplicates."
        fix = "data.dedup=exact, or data.dedup=minhash for near duplicates too"
        raise ConfigError(what, fix=fix)
    with _no_output_if(args.json):
        drops = write_drop_list_of(plan_store(cfg), Path(args.drop_list_only))
    path = args.drop_list_only
    if args.json:
        values = {name: getattr(drops, name) for name in ("sha256", "exact", "near")}
        print(json.dumps({"path": path, **values}, indent=2))
    else:
        print(f"drop-list  {path}: {drops.exact:,} exact and {drops.near:,} near duplicates")
        print(f"next       prepare or train with the same sources and data.drop_list={path}")
    return ExitCode.DONE


def _insert_wiki_settings(args: argparse.Namespace) -> list[str]:
    """Insert the settings for `--wiki` before the user's arguments. Returns lines to print."""
    dumps, settings = split_settings(args.wiki)
    args.rest = [*settings, *args.rest]
    words, notes = wiki_settings(dumps, args.rest)
    args.rest = [*words, *args.rest]
    return [f"wiki: {' '.join(words)}", *(f"wiki: {note}" for note in notes)]


def wiki_settings(dumps: Sequence[str], user: Sequence[str]) -> tuple[list[str], list[str]]:
    """(settings for these dumps that the user did not set, notes on missing packages).

    Quality rules are on. Exact duplicates are dropped, and near duplicates if rensa is installed. A
    Chinese dump is converted to simplified characters if OpenCC is installed.

    Raises ConfigError for dumps with the same text, DataError for a file that is not a dump.
    """
    from wikillm.config.flags import parse_arguments
    from wikillm.data.fetch.remote import scheme_of
    from wikillm.data.filters.settings import has_minhash, has_opencc
    from wikillm.data.sources.locate import locate
    from wikillm.data.sources.sniff import sniff

    set_by_user = {setting.key for setting in parse_arguments(user, Problems(ConfigError))}
    if "data.path" in set_by_user:
        what = "--wiki and data.path both name the sources."
        raise ConfigError(what, fix="leave one of them out")
    # Files behind URLs are fetched later, so only their names are known here.
    addresses = [dump for dump in dumps if scheme_of(dump)]
    local = [dump for dump in dumps if dump not in addresses]
    paths = [str(path) for path in locate(local)] if local else []
    _refuse_same_dump([*paths, *addresses])
    sources = [sniff(Path(path)) for path in paths]
    for source in sources:
        if source.format != "mediawiki":
            raise DataError(
                "A file of --wiki is not a MediaWiki dump.",
                got=f"{source.path} is {source.format}",
                fix=f"wikillm prepare data.path={source.path} data.quality=basic data.dedup=exact",
            )
    # The best settings for a dump, as far as their packages are installed here.
    wanted = {"data.quality": "basic", "data.dedup": "minhash", "data.convert": "none"}
    notes = {}
    install = "is not installed (pip install 'wikillm[wiki]')"
    if not has_minhash():
        wanted["data.dedup"] = "exact"
        notes["data.dedup"] = f"near duplicates stay: rensa {install}"
    sites = [source.site for source in sources]
    is_chinese = any(site.dbname == "zhwiki" or "://zh." in site.base for site in sites)
    if is_chinese or any("zhwiki" in name for name in addresses):
        wanted["data.convert"] = "t2s" if has_opencc() else "none"
        if not has_opencc():
            notes["data.convert"] = f"traditional characters stay: OpenCC {install}"
    if "data.drop_list" in set_by_user:  # the duplicates are already found
        wanted["data.dedup"] = "none"
        notes.pop("data.dedup", None)
    words = ["data.path=" + ",".join([*paths, *addresses])]
    words += [f"{key}={value}" for key, value in wanted.items() if key not in set_by_user]
    return words, [note for key, note in notes.items() if key not in set_by_user]


def _refuse_same_dump(paths: Sequence[str]) -> None:
    """Raises ConfigError for `pages-articles` and `pages-articles-multistream` of the same dump:
    both have the same text."""
    seen: dict[str, str] = {}
    for path in paths:
        plain = path.rpartition("/")[2].replace("-multistream", "")
        if plain in seen:
            best = path if "multistream" in path else seen[plain]
            raise ConfigError(
                "Two files of --wiki are the same dump in two forms.",
                got=f"{seen[plain]} and {path}",
                fix=f"--wiki {best} (several cores can read a multistream dump)",
            )
        seen[plain] = path


def _refuse_contradictions(args: argparse.Namespace) -> None:
    is_elsewhere = args.executor != "local" or args.shards is not None or args.print
    if args.drop_list_only is not None and is_elsewhere:
        raise ConfigError(
            "--drop-list-only finds duplicates on this machine, in one process.",
            fix="leave out --executor, --shards and --print; use them to build with data.drop_list",
        )
    if args.shards is not None and args.executor != "local":
        what = "--shards builds a part on this machine; --executor splits the work itself."
        raise ConfigError(what)
    if args.executor == "slurm" and not args.print:
        raise ConfigError(
            "--executor slurm only prints a batch file.",
            fix="add --print > prepare.sbatch; the file says how to submit it",
        )
    if args.print and args.executor != "slurm":
        raise ConfigError("--print is for --executor slurm.", got=f"--executor {args.executor}")


def _batch_file(args: argparse.Namespace) -> str:
    from wikillm.launch.slurm import PrepareArray, prepare_array

    chosen = [*(["--config", args.config] if args.config else []), *args.rest]
    array = PrepareArray(
        tuple(chosen), args.tasks, args.cpus, args.hours, args.partition, args.account
    )
    return prepare_array(array, ("wikillm", *sys.argv[1:]))
