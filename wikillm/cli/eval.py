"""`wikillm eval MODEL`: print held-out loss, perplexity and bits per byte next to the unigram
baseline. `--text` scores files and `--tasks` scores multiple-choice tasks instead."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from wikillm.cli.arguments import add_device, add_json, add_trust, positive
from wikillm.cli.run_config import add_run_config_arguments, resolve_run_config
from wikillm.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from wikillm.config.resolved import Resolved
    from wikillm.data.read.corpus import Corpus
    from wikillm.evals.loss import HeldOutLoss

EPILOG = """
examples:
  wikillm eval runs/demo                                    on the held-out text of its own run
  wikillm eval exports/wiki-zh-120m-500 data.path=other.jsonl   on the held-out part of another text
  wikillm eval runs/demo --text news.jsonl poems.txt    broken down by source and writing system
  wikillm eval runs/demo --tasks ceval:data/ceval,choices:own.jsonl --shots 5
A model that is not in a run directory needs data.path or --text. Its own tokenizer is used.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    from wikillm.cli.eval_files import add_file_arguments

    add = parser.add_argument
    add("model", metavar="MODEL", help="a run directory, a checkpoint or an exported folder")
    add_file_arguments(parser)
    help = "which split of the text to score (default val)"
    add("--split", choices=("val", "train"), default="val", help=help)
    help = "sequences at a time (default 8)"
    add("--batch-size", type=positive, default=8, metavar="N", help=help)
    add_device(parser)
    add_trust(parser)
    add_json(parser, "print one JSON object instead of lines")
    add_run_config_arguments(parser)
    parser.epilog = EPILOG


def run(args: argparse.Namespace) -> int:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from wikillm.cli.generate import open_model, say_loading

    say_loading(args.model)
    if args.text or args.tasks:
        from wikillm.cli.eval_files import evaluate_files

        return evaluate_files(args)
    from wikillm.data.read.loader import document_mask, eval_loader
    from wikillm.data.read.open import open_corpus
    from wikillm.evals.loss import held_out_loss
    from wikillm.models.fused_loss import fused_loss

    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        resolved = resolve_eval_config(args)
        corpus = open_corpus(resolved.config.data)
        check_tokenizer(Path(args.model), corpus)
        loaded = open_model(Path(args.model), args.device, trust=args.trust_checkpoint)
    train = resolved.config.train
    found: dict[str, HeldOutLoss] = {}
    attention = str(loaded.model.config._attn_implementation)
    mask = document_mask(train.document_mask, attention, corpus.manifest.tokenizer.eos_id)
    with fused_loss(loaded.model, rows=args.batch_size * train.sequence_length) as model:
        for part in corpus.streams(args.split, train.max_eval_tokens):
            batches = eval_loader(
                part.tokens,
                train.sequence_length,
                micro_batch=args.batch_size,
                world_size=1,
                rank=0,
                max_tokens=train.max_eval_tokens,
                mask=mask,
            )
            result = held_out_loss(
                model, batches, bytes_per_token=part.bytes_per_token, device=model.device
            )
            assert result is not None, "`should_stop` is not passed"
            found[part.name] = result
    return _print_scores(args, corpus, found, train.sequence_length)


def _print_scores(
    args: argparse.Namespace, corpus: Corpus, parts: dict[str, HeldOutLoss], length: int
) -> int:
    from wikillm.data.inspect.stats import unigram_cross_entropy
    from wikillm.evals.loss import combined, weights_of

    result = combined(parts.values()) if len(parts) > 1 else next(iter(parts.values()))
    named = {name: part for name, part in parts.items() if name}
    stream = corpus.train if args.split == "train" else corpus.val
    unigram = unigram_cross_entropy(stream.count_tokens(corpus.manifest.tokenizer.length))
    values = {
        "model": args.model,
        "store": str(corpus.dir),
        "split": args.split,
        **result.to_json(),
        "unigram": unigram,
    }
    if named:
        values["sources"] = {name: part.to_json() for name, part in named.items()}
    if args.json:
        print(json.dumps(values, ensure_ascii=False))
        return 0
    tokens = f"{result.targets:,} tokens"
    print(f"text       {args.split} of {corpus.dir}: {tokens}, sequences of {length}")
    print(f"loss       {result.loss:.4f} nats/token   perplexity {result.perplexity:.2f}")
    print(f"bits/byte  {result.bits_per_byte:.4f}")
    if named:
        print(f"all        {weights_of(named)}")
    for name, part in named.items():
        rate = f"{part.bits_per_byte:.4f} bits/byte"
        print(f"of {name:<7} {part.loss:.4f} nats/token   {rate}   {part.targets:,} tokens")
    print(
        f"unigram    {unigram:.4f} nats/token   the best that token frequencies alone can do here"
    )
    return 0


def resolve_eval_config(args: argparse.Namespace) -> Resolved:
    """Resolve the configuration of the run that MODEL belongs to, or else of the command line."""
    from wikillm.config.load import load

    model = Path(args.model)
    own = [folder / "config.resolved.yaml" for folder in (model, *model.resolve().parents[:2])]
    found = next((path for path in own if path.is_file()), None)
    if args.config is None:
        # `data.min_val_tokens` guards training. Evaluation accepts fewer tokens, because it prints
        # how many it scored.
        args.rest = ["data.min_val_tokens=1", *args.rest]
    if args.config is None and found is not None:
        return load(str(found), [*_use_store_if_url_was_signed(found), *args.rest])
    names_tokenizer = any(word.startswith("data.tokenizer=") for word in args.rest)
    names_text = any(word.startswith(("data.path=", "data.mixture=")) for word in args.rest)
    if not names_text and args.config is None:
        raise ConfigError(
            "There is no text to evaluate on.",
            got=f"{model} is neither a run directory nor a checkpoint of a run",
            fix=f"wikillm eval {shlex.quote(str(model))} --text FILE",
        )
    if not names_tokenizer and (model / "tokenizer.json").is_file():
        args.rest = [*args.rest, f"data.tokenizer={model}"]
    return resolve_run_config(args)


def _use_store_if_url_was_signed(config: Path) -> list[str]:
    """Settings that read the run's store where its saved configuration has a redacted, signed URL:
    the URL without its signature cannot be fetched."""
    if "?***" not in config.read_text(encoding="utf-8"):
        return []
    from wikillm.core.files import read_object

    store = read_object(config.parent / "data.json").get("store")
    return ["data.path=null", f"data.store={store}"] if store else []


def check_tokenizer(model: Path, corpus: Corpus) -> None:
    """Raises DataError if the store's tokenizer is not the model's: the loss would be
    meaningless."""
    from wikillm.core.files import sha256_file

    parents = [parent / "tokenizer" for parent in model.resolve().parents[:2]]
    folders = (model, model / "tokenizer", *parents)
    folder = next((path for path in folders if (path / "tokenizer.json").is_file()), None)
    if folder is None:
        return
    path = folder / "tokenizer.json"
    stored = corpus.manifest.tokenizer
    if stored.sha256 not in (sha256_file(path), _trained_with(folder)):
        raise DataError(
            "The store's tokenizer is not the model's.",
            got=f"the model's is {path}, the store's is {stored.name} in {corpus.tokenizer_dir}",
            fix=f"data.tokenizer={folder}",
        )


def _trained_with(folder: Path) -> str | None:
    """sha256 of the training tokenizer, as recorded in an exported folder."""
    from wikillm.core.files import read_object
    from wikillm.export.target_folder import MARK

    found = read_object(folder / MARK).get("tokenizer")
    return found if isinstance(found, str) else None
